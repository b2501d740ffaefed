"""Where a run keeps its things, and the private inputs that every worker loads anew from there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from benchmark.artefacts import Code
from benchmark.victims import secretly_jittered
from federation.datasets import Dataset, LabelledImages
from federation.device import CPU, kind_of
from federation.errors import UsageError
from federation.secret_root import SecretRoot
from federation.tasks import find_task


@dataclass(frozen=True)
class Workspace:
    """A run's folder and its private inputs; small enough to hand to any worker process.

    Attributes:
        directory: the run's folder.
        root_file: the secret root, outside the run's folder.
        data_directory: where data sets that are not embedded stand.
        download: whether missing data sets may be fetched.
        lpips_trunk: AlexNet's trunk for LPIPS, if given.
        code: the code that the run began with.
        device: where training and attacks compute, as `find_device` gives it.
    """

    directory: Path
    root_file: Path
    data_directory: Path | None = None
    download: bool = False
    lpips_trunk: Path | None = None
    code: Code = field(default_factory=Code.now)
    device: str = CPU

    @property
    def root(self) -> SecretRoot:
        """The run's secret root."""
        return _root(self.root_file)

    @property
    def root_fingerprint(self) -> str:
        """Tells roots apart without telling anything about them."""
        return hashlib.sha256(self.root.derive("fingerprint").stream(32)).hexdigest()[:20]

    @property
    def device_parts(self) -> list[str]:
        """What the device adds to the content address of a result: nothing on the processor, where addresses began."""
        return [] if self.device == CPU else [kind_of(self.device)]

    @property
    def artefacts(self) -> Path:
        """Trainings and attack runs by content address."""
        return self.directory / "artefacts"

    def dataset(self, task: str) -> Dataset:
        """The data of a task."""
        return _dataset(task, self.data_directory, self.download)

    def private(self, task: str, split: str, *, raw: bool) -> LabelledImages:
        """A private split as the clients hold it: secretly cropped and jittered, unless `raw`."""
        return _private(self, task, split, raw)


def secret_root_beside(directory: Path) -> Path:
    """Where the secret root of a run in `directory` stands: next to the folder, never in it."""
    return directory.parent / f"{directory.name}.root"


def ensure_root(path: Path) -> None:
    """Make a fresh secret root at `path` unless there is one; raises DataError for one that cannot be used."""
    if path.exists():
        SecretRoot.load(path)
    else:
        SecretRoot.fresh().save(path)


@lru_cache(maxsize=4)
def _root(path: Path) -> SecretRoot:
    return SecretRoot.load(path)


@lru_cache(maxsize=4)
def _dataset(task: str, data_directory: Path | None, download: bool) -> Dataset:
    return find_task(task).load_data(data_directory, download)


@lru_cache(maxsize=8)
def _private(workspace: Workspace, task: str, split: str, raw: bool) -> LabelledImages:
    dataset = workspace.dataset(task)
    splits = {"training": dataset.training, "victims": dataset.victims}
    if split not in splits:
        raise UsageError(f"{split!r} is not a private split; they are: {', '.join(splits)}")
    if raw:
        return splits[split]
    return secretly_jittered(splits[split], workspace.root.derive("jitter", dataset.sha256, split))
