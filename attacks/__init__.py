"""Attacks. Importing the package registers those that come with Keyhole."""

from attacks import cosine, dlg

__all__ = ["cosine", "dlg"]
