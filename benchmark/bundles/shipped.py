"""The bundles that come with Keyhole, and how they are made: `python -m benchmark.bundles.shipped [FOLDER]`.

Each is one round of a federation of one client, so that an observation is one update, from the initial weights. The
private images are digits of `mnist5k`, which is public, as they come: a figure of a bundle shows how an attack behaves
and is never ranked. The root of their keys stands below for everyone to read: they can be made again, bit for bit on
the same machine.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attacks.base import Budget
from benchmark.bundles.make import Wanted, write_bundle
from benchmark.experiment import Algorithm, DefenseSpec, FederationSpec
from benchmark.regimes import ProbeVictims, Victims
from benchmark.training_plan import TrainingPlan
from benchmark.trainings import run_training
from benchmark.workspace import Workspace
from federation.errors import UsageError
from federation.secret_root import SecretRoot

FOLDER = Path(__file__).parent / "data"
DEFAULT = "lenet-zhu-plain"

_ROOT = SecretRoot(b"keys of the bundles that come with Keyhole; public")
_RATE = 0.1

SHIPPED: Mapping[str, tuple[Wanted, dict[str, Any]]] = {
    "lenet-zhu-plain": (
        Wanted(
            "mnist5k-lenet-zhu",
            "plain",
            budget=Budget(evaluations=200),
            title="one digit an update, DLG's sigmoid LeNet, no defense",
        ),
        {"count": 4, "rate": _RATE},
    ),
    "lenet-zhu-batch4": (
        Wanted(
            "mnist5k-lenet-zhu",
            "plain",
            budget=Budget(evaluations=300),
            title="four digits an update, DLG's sigmoid LeNet, no defense",
        ),
        {"count": 2, "batch": 4, "rate": _RATE},
    ),
    "lenet-zhu-keynet": (
        Wanted(
            "mnist5k-lenet-zhu",
            "keynet",
            budget=Budget(evaluations=300),
            title="one digit an update, DLG's sigmoid LeNet under Key-Net: permutations and gains",
        ),
        {"count": 4, "rate": _RATE},
    ),
    "lenet5-keynet": (
        Wanted(
            "mnist5k-lenet5",
            "keynet",
            budget=Budget(evaluations=300),
            title="one digit an update, LeNet-5 under Key-Net: permutations and gains",
        ),
        {"count": 2, "rate": _RATE},
    ),
}
"""What each bundle shows, by name: which part of its run, and the probes of that run."""


def make_shipped(name: str, directory: Path) -> None:
    """Train what a bundle needs, and write the bundle.

    Raises:
        UsageError: for a name that is not among the shipped ones.
    """
    if name not in SHIPPED:
        raise UsageError(f"no bundle is called {name!r}; there are {', '.join(SHIPPED)}")
    wanted, probe = SHIPPED[name]
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), Path(folder) / "root")
        _ROOT.save(workspace.root_file)
        victims = Victims(probe=ProbeVictims.model_validate(probe), raw=True)
        federation = _federation(wanted)
        plan = TrainingPlan(workspace, federation, federation.defenses[0], victims, wanted.seed)
        run_training(plan)
        write_bundle(directory, plan, wanted)


def _federation(wanted: Wanted) -> FederationSpec:
    """One client, and of its training one step: nothing of it is observed but the probes before it."""
    algorithm: dict[str, Any] = {"clients": 1, "rounds": 1, "batch_size": 50, "steps": 1, "learning_rate": _RATE}
    return FederationSpec(
        task=wanted.task,
        algorithm=Algorithm(**algorithm),
        defenses=(DefenseSpec.model_validate(wanted.defense),),
        snapshots=(0,),
        references=False,
    )


def main() -> None:
    """Make all of them, in the folder given or where they are shipped from."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name in SHIPPED:
        make_shipped(name, folder / name)


if __name__ == "__main__":
    main()
