"""Bundles by name or by folder."""

from __future__ import annotations

import difflib
from pathlib import Path

from benchmark.bundles.files import RECORD, read_record
from benchmark.bundles.shipped import FOLDER, SHIPPED
from federation.errors import UsageError


def bundle_directory(reference: str) -> Path:
    """The folder of the bundle that `reference` names: one that comes with Keyhole, or a path.

    Raises:
        UsageError: where there is neither, with near matches.
    """
    if reference in SHIPPED:
        return FOLDER / reference
    path = Path(reference)
    if (path / RECORD).is_file():
        return path
    near = difflib.get_close_matches(reference, SHIPPED, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(SHIPPED)}"
    raise UsageError(f"no bundle is called {reference!r}, and it is not a folder with a {RECORD}; {hint}")


def shipped_titles() -> dict[str, str]:
    """One line on each bundle that comes with Keyhole, by name."""
    return {name: read_record(FOLDER / name).title for name in SHIPPED}
