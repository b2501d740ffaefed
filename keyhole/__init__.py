"""Keyhole measures what a federated-learning defense really hides."""

from keyhole.api import run

__all__ = ["run"]
