"""A made-up result, as the reproduction of Gusain 2021 stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gusain_result import (
    draw_keyed_pictures,
    made_up,
    run_of_lenet,
)

from benchmark.store.gusain import (
    write_gusain,
)
from leaderboard.reproduction.gusain_runs import Reproduction, read_reproduction


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, make_run: type[Any]) -> Path:
    directory = tmp_path_factory.mktemp("gusain")
    run_of_lenet(make_run(seeds=(0, 1), images=3)).write(directory / "lenet", pictures=True)
    draw_keyed_pictures(directory)
    write_gusain(directory, made_up())
    return directory


@pytest.fixture(scope="session")
def found(folder: Path) -> Reproduction:
    return read_reproduction(folder)
