"""`keyhole reproduce gusain`: a secure framework for federated learning (Gusain 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.engines.local import LocalEngine
from benchmark.reproduce.gusain.run import Options, reproduce
from benchmark.reproduce.gusain.scales import LABELS, scale_for
from benchmark.store.gusain import NETWORKS, NetworkName, Scale
from benchmark.workspace import Workspace, ensure_root, secret_root_beside
from federation.device import CPU, find_device
from federation.errors import UsageError
from keyhole.commands.reproduce.common import AsJson, clear, print_result
from keyhole.options import DataDirectory, Device, Download, LpipsTrunk, Resume, Workers
from keyhole.progress import progress_for_this_output
from leaderboard.reproduction.gusain import write_gusain_report


def gusain(
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--quick",
            help="Everything at the paper's size, which takes days on a CPU; or embedded data, in minutes."
            "  [default: reduced to a CPU, or --quick without --data-dir]",
        ),
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help=f"Only this network ({' or '.join(NETWORKS)}); may be repeated.")
    ] = None,
    data_dir: DataDirectory = None,
    download: Download = False,
    lpips_trunk: LpipsTrunk = None,
    out: Annotated[Path, typer.Option(help="The result's folder.")] = Path("runs/gusain"),
    seed: Annotated[list[int] | None, typer.Option(min=0, help="In place of the scale's own; may be repeated.")] = None,
    workers: Workers = None,
    device: Device = CPU,
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """Gusain (2021): LeNet and MobileNetV2 under Key-Net, FedAvg and FedPAQ. Accuracy, and what the server recovers."""
    scale = _scale(full, data_dir)
    options = Options(scale, tuple(map(_network, dict.fromkeys(network or NETWORKS))), tuple(seed or ()))
    directory = out.resolve()
    computing = find_device(device)
    workspace = Workspace(
        directory=directory,
        root_file=secret_root_beside(directory),
        data_directory=data_dir,
        download=download,
        lpips_trunk=lpips_trunk,
        device=computing,
    )
    if not resume:
        clear(directory, NETWORKS)
    directory.mkdir(parents=True, exist_ok=True)
    ensure_root(workspace.root_file)
    if not as_json:
        typer.echo(_announcement(scale, full, data_dir))
    with LocalEngine(workers, computing) as engine, progress_for_this_output(quiet=as_json) as progress:
        result = reproduce(workspace, options, engine=engine, progress=progress)
    print_result(result, write_gusain_report(directory), directory, as_json=as_json)


def _scale(full: bool | None, data_directory: Path | None) -> Scale:
    return scale_for(data_directory) if full is None else "full" if full else "quick"


def _network(name: str) -> NetworkName:
    for known in NETWORKS:
        if name == known:
            return known
    raise UsageError(f"the paper has no network {name!r}; there are: {', '.join(NETWORKS)}")


def _announcement(scale: Scale, full: bool | None, data_directory: Path | None) -> str:
    """The scale in words and, where nobody asked for it, why it is this one."""
    if full is None and data_directory is None:
        return f"{LABELS[scale]} For the real sets give --data-dir or KEYHOLE_DATA_DIR."
    return LABELS[scale]
