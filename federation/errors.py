"""Errors that a person can act on: one line that says what was wrong, where, and what would be right."""

from __future__ import annotations


class KeyholeError(Exception):
    """Base of every error that Keyhole raises on purpose; the command line prints its message alone."""


class UsageError(KeyholeError):
    """A name, option or configuration that cannot be used as given."""


class MissingExtra(UsageError):
    """A part that needs an optional package which is not installed."""


class DataError(KeyholeError):
    """A dataset, weight file or stored result that is missing, malformed or inconsistent."""


class MalformedMessage(KeyholeError):
    """Bytes from the wire that are not a valid message of the protocol, or that do not fit the agreed layout."""


class TrainingError(KeyholeError):
    """Local training that produced something that cannot be shared, such as a weight that is not finite."""
