"""`keyhole run --device`: it reaches the workspace and the workers, and is announced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from typer.testing import Result

from benchmark.workspace import Workspace
from federation.errors import DataError
from keyhole import api

pytestmark = pytest.mark.usefixtures("surroundings", "serially")


@pytest.mark.parametrize(
    ("option", "device", "announced"),
    [
        ((), "cpu", "Takes about"),
        (("--device", "cpu"), "cpu", "Takes about"),
        (("--device", "auto"), "cuda", "Computes on cuda (GPU number 0, GPU number 1), 1 at a time."),
        (("--device", "cuda:1"), "cuda:1", "Computes on cuda:1 (GPU number 1), 1 at a time."),
    ],
)
def test_the_device_reaches_workspace_and_workers(
    invoke: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    option: tuple[str, ...],
    device: str,
    announced: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU number {index}")
    monkeypatch.setattr("keyhole.commands.run.estimated_seconds", lambda *_: 60.0)
    serial, seen = api.LocalEngine, []

    def stop(experiment: Any, workspace: Workspace, **_: Any) -> None:
        seen.append(workspace.device)
        raise DataError("far enough")

    def engine(workers: int | None, device: str) -> Any:
        seen.append(device)
        return serial(workers)

    monkeypatch.setattr(api, "LocalEngine", engine)
    monkeypatch.setattr(api, "run_experiment", stop)
    result = invoke("run", "smoke", *option)
    assert seen == [device, device]
    assert announced in result.output
    assert "far enough" in result.output
