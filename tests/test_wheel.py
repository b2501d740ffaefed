"""The wheel holds Keyhole's packages with what they need to run, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PACKAGES = {"federation", "attacks", "defenses", "benchmark", "leaderboard", "keyhole"}
DATA = (
    "benchmark/bundles/data/*/*",
    "benchmark/experiments/*.yaml",
    "benchmark/reproduce/gusain/*.yaml",
    "leaderboard/site/templates/*",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel that was built from a copy of the checkout, which building writes into."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed here, and building without isolation needs it")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=CHECKOUT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True)
    (wheel,) = out.glob("keyhole-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_nothing_but_the_packages_and_the_metadata(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    (metadata,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops - {metadata} == PACKAGES
    assert any(name.startswith(metadata) and name.endswith("LICENSE") for name in names)


def test_every_module_and_every_data_file_is_in_it(names: set[str]) -> None:
    modules = {str(path.relative_to(CHECKOUT)) for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py")}
    data = {str(path.relative_to(CHECKOUT)) for pattern in DATA for path in CHECKOUT.glob(pattern)}
    assert data
    packed = {name for name in names if name.partition("/")[0] in PACKAGES}
    assert packed == modules | data
