"""What is kept of a training: its row, and for each observed round the transcript and the truth."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from benchmark.store import TrainingRow
from federation.errors import DataError
from federation.files import write_bytes, write_text
from federation.messages import tensors_to_bytes
from federation.weights import Weights

_ROW = "row.json"
_FILES = "files"
_FACTS = ("images", "labels", "indices")


@dataclass(frozen=True)
class Truth:
    """What a victim really was; the referee's, never an attack's.

    Attributes:
        images: uint8 [m, C, H, W].
        labels: int64 [m].
        indices: int64 [m], rows of the private split that they come from.
        trained: the victim's weights after its local training, before the defense.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    trained: Weights

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        facts = {name: getattr(self, name) for name in _FACTS}
        write_bytes(path, tensors_to_bytes(facts | {f"trained.{name}": item for name, item in self.trained.items()}))

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read what `save` wrote; raises DataError for a missing or damaged file."""
        tensors = load_weights(path)
        trained = {
            name.removeprefix("trained."): tensor for name, tensor in tensors.items() if name.startswith("trained.")
        }
        try:
            return cls(tensors["images"], tensors["labels"], tensors["indices"], trained)
        except KeyError as error:
            raise DataError(f"{path}: not a readable truth (it lacks {error}); {_remedy(path.parent)}") from error


def load_weights(path: Path) -> Weights:
    """Named tensors of a training's file; raises DataError for a missing or damaged one."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: not readable ({error}); {_remedy(path.parent)}") from error


def snapshot_name(kind: str, round_number: int, index: int = 0) -> str:
    """The name of one observed round among a training's files."""
    return f"{kind}-{round_number}-{index}"


def save_row(row: TrainingRow, directory: Path) -> None:
    """Write the row last of all: its presence says that the artefact is whole. It names the other files' hashes."""
    content = dataclasses.asdict(row) | {"correct": base64.b64encode(row.correct).decode()}
    files = {path.name: _sha256(path) for path in sorted(directory.iterdir()) if not path.name.startswith(".")}
    files.pop(_ROW, None)
    write_text(directory / _ROW, json.dumps(content | {_FILES: files}, indent=1))


def load_row(directory: Path) -> TrainingRow:
    """The row of a finished training; raises DataError for a damaged one."""
    content, _ = _read(directory)
    try:
        return TrainingRow(**content | {"correct": base64.b64decode(content["correct"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{directory}: not a readable training ({error}); {_remedy(directory)}") from error


def is_finished(directory: Path) -> bool:
    """Whether the artefact in `directory` is whole."""
    return (directory / _ROW).is_file()


def check_observed(directory: Path, name: str) -> None:
    """Raise DataError unless the files of the observed round `name` are those that the finished training wrote."""
    _, files = _read(directory)
    expected = {file: sha256 for file, sha256 in files.items() if Path(file).stem == name}
    if not expected:
        raise DataError(f"{directory}: it kept no {name}; {_remedy(directory)}")
    for file, sha256 in expected.items():
        path = directory / file
        if not path.is_file() or _sha256(path) != sha256:
            raise DataError(f"{path}: missing, or not what the training wrote; {_remedy(directory)}")


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The columns of the row, and the other files' hashes by name."""
    try:
        content = json.loads((directory / _ROW).read_text(encoding="utf-8"))
        return content, dict(content.pop(_FILES))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{directory}: not a readable training ({error}); {_remedy(directory)}") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _remedy(directory: Path) -> str:
    return f"remove {directory} to have it made anew"
