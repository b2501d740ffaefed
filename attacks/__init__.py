"""Attacks. Importing the package registers those that come with Keyhole."""

from attacks import analytic, cosine, cosine_quantized, cosine_update, dlg, idlg
from attacks.adaptive import (
    aggregate,
    collusion,
    difference,
    exponent_leak,
    isolation,
    keyed_images,
    keynet_gauge,
    keynet_grid,
    keynet_statistics,
    known_initialisation,
    paillier_cloud,
    paillier_quotient,
    selection,
)

__all__ = [
    "aggregate",
    "analytic",
    "collusion",
    "cosine",
    "cosine_quantized",
    "cosine_update",
    "difference",
    "dlg",
    "exponent_leak",
    "idlg",
    "isolation",
    "keyed_images",
    "keynet_gauge",
    "keynet_grid",
    "keynet_statistics",
    "known_initialisation",
    "paillier_cloud",
    "paillier_quotient",
    "selection",
]
