"""Attacks. Importing the package registers those that come with Keyhole."""

from attacks import cosine, dlg, idlg
from attacks.adaptive import (
    difference,
    exponent_leak,
    isolation,
    keynet_gauge,
    keynet_grid,
    known_initialisation,
    paillier_cloud,
    paillier_quotient,
    selection,
)

__all__ = [
    "cosine",
    "difference",
    "dlg",
    "exponent_leak",
    "idlg",
    "isolation",
    "keynet_gauge",
    "keynet_grid",
    "known_initialisation",
    "paillier_cloud",
    "paillier_quotient",
    "selection",
]
