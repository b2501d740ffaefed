"""Attacks. Importing the package registers those that come with Keyhole."""

from attacks import cosine, dlg
from attacks.adaptive import difference, exponent_leak, isolation, paillier_cloud, paillier_quotient, selection

__all__ = [
    "cosine",
    "difference",
    "dlg",
    "exponent_leak",
    "isolation",
    "paillier_cloud",
    "paillier_quotient",
    "selection",
]
