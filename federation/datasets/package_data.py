"""Files that other packages carry inside their wheels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from federation.errors import DataError


def package_file(package: str, relative: str) -> Path:
    """The file `relative` inside the installed `package`, found without importing it and without any download.

    Raises:
        DataError: where the package is not installed or does not carry the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {package} is not installed; `pip install {package}`")
    path = Path(spec.submodule_search_locations[0], relative)
    if not path.is_file():
        raise DataError(f"{path} is missing; reinstall the package that carries it ({package})")
    return path
