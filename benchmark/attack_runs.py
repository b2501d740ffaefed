"""One run of one attack on what one adversary observes, kept under its content address."""

from __future__ import annotations

import errno
import hashlib
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import scipy.sparse
import torch
from torch import Tensor

from attacks.base import Attack, Budget, Reconstruction, prior_guess, restricted
from benchmark.artefacts import digest, source_digest
from benchmark.experiment import AttackSpec
from benchmark.metrics.pixel import to_eight_bit
from benchmark.workspace import Workspace
from federation.device import computing_on
from federation.errors import DataError
from federation.files import write_bytes, write_text
from federation.messages import tensors_to_bytes
from federation.seeds import torch_generator
from federation.threat import KeyedImage, Observation, PlainModel, SparseLayers, Victim
from federation.weights import Weights


@dataclass(frozen=True)
class StoredReconstruction:
    """What is kept of a reconstruction.

    Attributes:
        images: uint8 [m, C, H, W].
        labels: int64 [m], or None.
        objective, evaluations, seconds, findings, note: as the attack gave them.
        recovered_weights: the weights that the attack claims to have recovered, by name; empty for none.
        key_claims: what it claims about keys, by name; empty for nothing.
    """

    images: Tensor
    labels: Tensor | None
    objective: float | None
    evaluations: int
    seconds: float
    findings: dict[str, float]
    note: str
    recovered_weights: Weights = field(default_factory=dict)
    key_claims: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackRun:
    """The stored result of one run: reconstructions, or the message of the crash."""

    identifier: str
    reconstructions: tuple[StoredReconstruction, ...]
    crash: str

    @classmethod
    def load(cls, directory: Path) -> AttackRun:
        """Read a finished run; raises DataError for a damaged one."""
        try:
            content = json.loads((directory / "result.json").read_text(encoding="utf-8"))
            packed = (directory / "reconstructions.safetensors").read_bytes()
            if hashlib.sha256(packed).hexdigest() != content["sha256"]:
                raise ValueError("the reconstructions are not what the run wrote")
            tensors = safetensors.torch.load(packed)
            reconstructions = tuple(
                StoredReconstruction(
                    tensors[f"{index}.images"],
                    tensors.get(f"{index}.labels"),
                    **facts,
                    recovered_weights=_named(tensors, f"{index}.recovered."),
                    key_claims=_named(tensors, f"{index}.key_claims."),
                )
                for index, facts in enumerate(content["reconstructions"])
            )
            return cls(directory.name, reconstructions, content["crash"])
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise DataError(
                f"{directory}: not a readable attack run ({error}); remove it to have it made anew"
            ) from error

    def save(self, directory: Path) -> None:
        """Write it; the JSON file goes last and says that the rest is whole."""
        tensors: dict[str, Tensor] = {}
        facts = []
        for index, item in enumerate(self.reconstructions):
            tensors[f"{index}.images"] = item.images
            if item.labels is not None:
                tensors[f"{index}.labels"] = item.labels
            tensors |= {f"{index}.recovered.{name}": tensor for name, tensor in item.recovered_weights.items()}
            tensors |= {f"{index}.key_claims.{name}": tensor for name, tensor in item.key_claims.items()}
            names = ("objective", "evaluations", "seconds", "findings", "note")
            facts.append({name: getattr(item, name) for name in names})
        packed = tensors_to_bytes(tensors)
        write_bytes(directory / "reconstructions.safetensors", packed)
        content = {"crash": self.crash, "reconstructions": facts, "sha256": hashlib.sha256(packed).hexdigest()}
        write_text(directory / "result.json", json.dumps(content, indent=1))


def run_attack(
    spec: AttackSpec, history: Sequence[Observation], victims: Sequence[Victim], workspace: Workspace, seed: int
) -> AttackRun:
    """Run the attack, or load the same run where it was finished before.

    The address holds all that the attack can see: two adversaries to whom everything that it reads looks the same
    share a run.
    """
    attack = spec.build()
    seen = [restricted(history[index], attack.needs) for index in range(len(history))]
    identifier = _identifier(spec, attack, seen, victims, seed, workspace)
    directory = workspace.artefacts / "attacks" / identifier
    if not (directory / "result.json").is_file():
        with computing_on(workspace.device):
            budget = replace(spec.budget, device=workspace.device)
            run = _run(attack, budget, seen, victims, seed, identifier)
        run.save(directory)
    return AttackRun.load(directory)


def run_prior_guess(history: Sequence[Observation], victims: Sequence[Victim]) -> AttackRun:
    """What an attack without any signal returns; cheap enough not to be kept."""
    stored = tuple(_stored(prior_guess(history[victim.observation], victim)) for victim in victims)
    labels = [len(item.images) for item in stored]
    return AttackRun(digest("prior guess", [_tensor_digest(item.images) for item in stored], labels), stored, "")


def _run(
    attack: Attack,
    budget: Budget,
    seen: list[Observation],
    victims: Sequence[Victim],
    seed: int,
    identifier: str,
) -> AttackRun:
    generator = torch_generator("attack", seed, attack.name)
    start = time.perf_counter()
    try:
        found = attack.reconstruct(seen, victims, generator=generator, budget=budget)
        seconds = time.perf_counter() - start
        check_returned(found, victims, seen)
        stored = _all_stored(found, seconds)
    except Exception as error:  # a crash is a row with its message, never a missing row
        full_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full_disk or isinstance(error, torch.OutOfMemoryError):
            raise  # this machine's want of room is no property of the attack
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
        return AttackRun(identifier, (), message)
    return AttackRun(identifier, stored, "")


def check_returned(found: list[Reconstruction], victims: Sequence[Victim], seen: Sequence[Observation]) -> None:
    """Raise ValueError for what an attack cannot have meant: a wrong number or shape of images, values outside [0, 1]."""
    if len(found) != len(victims):
        raise ValueError(f"the attack returned {len(found)} reconstructions for {len(victims)} victims")
    for item, victim in zip(found, victims, strict=True):
        expected = (victim.image_count, *seen[victim.observation].network.image_shape)
        if tuple(item.images.shape) != expected:
            raise ValueError(f"{victim.identifier}: images {tuple(item.images.shape)}, expected {expected}")
        if not bool(torch.isfinite(item.images).all()) or item.images.min() < 0 or item.images.max() > 1:
            raise ValueError(f"{victim.identifier}: images must be finite and in [0, 1]")
        if item.labels is not None and item.labels.shape != (victim.image_count,):
            raise ValueError(
                f"{victim.identifier}: labels {tuple(item.labels.shape)}, expected ({victim.image_count},)"
            )


def _all_stored(found: list[Reconstruction], seconds: float) -> tuple[StoredReconstruction, ...]:
    """What is kept of all reconstructions of a call; its seconds are shared out in the attack's own proportions."""
    total = sum(item.seconds for item in found)
    shares = [item.seconds / total if total > 0 else 1 / len(found) for item in found]
    return tuple(_stored(item, seconds * share) for item, share in zip(found, shares, strict=True))


def _stored(item: Reconstruction, seconds: float = 0.0) -> StoredReconstruction:
    return StoredReconstruction(
        to_eight_bit(item.images),
        None if item.labels is None else item.labels.to("cpu", torch.int64, copy=True),
        None if item.objective is None else float(item.objective),
        int(item.evaluations),
        float(seconds),
        {str(name): float(value) for name, value in item.findings.items()},
        str(item.note),
        _kept(item.recovered_weights or {}),
        _kept(item.key_claims),
    )


def _kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that can be stored, also where an attack gave one tensor for several victims or names."""
    for name, tensor in tensors.items():
        if torch.as_tensor(tensor).layout is not torch.strided:
            raise ValueError(f"{name}: a dense tensor is due, not {tensor.layout}")
    return {str(name): torch.as_tensor(tensor).detach().cpu().clone() for name, tensor in tensors.items()}


def _named(tensors: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _identifier(
    spec: AttackSpec,
    attack: Attack,
    seen: Sequence[Observation],
    victims: Sequence[Victim],
    seed: int,
    workspace: Workspace,
) -> str:
    return digest(
        "attack run",
        spec.model_dump(mode="json", exclude={"name"}),
        attack.name,
        source_digest(type(attack)),
        workspace.code.attacks,
        seed,
        [vars(victim) for victim in victims],
        [_observation_digest(observation) for observation in seen],
        *workspace.device_parts,
    )


def _observation_digest(observation: Observation) -> str:
    view = observation.view
    if isinstance(view, PlainModel):
        weights = [view.before, *(view.after[name] for name in sorted(view.after))]
        content: object = [[(name, _tensor_digest(tensor)) for name, tensor in part.items()] for part in weights]
    elif isinstance(view, SparseLayers):
        parts = [view.before, *(view.after[name] for name in sorted(view.after))]
        content = [_matrices_digest(part) for part in parts]
    elif isinstance(view, KeyedImage):
        content = [_matrices_digest(view.layers), str(view.image.dtype), _tensor_digest(view.image)]
    else:
        content = repr(view)
    auxiliary = observation.auxiliary
    return digest(
        observation.round,
        type(view).__name__,
        sorted(getattr(view, "hidden_by", ())),
        content,
        vars(observation.facts) | {"sample_counts": dict(observation.facts.sample_counts)},
        [(spec.name, spec.shape) for spec in observation.network.layout],
        observation.network.image_shape,
        observation.mean,
        observation.deviation,
        None if auxiliary is None else [_tensor_digest(auxiliary.pixels), _tensor_digest(auxiliary.labels)],
        [hashlib.sha256(envelope.to_bytes()).hexdigest() for envelope in observation.transcript],
        {name: hashlib.sha256(state).hexdigest() for name, state in observation.held.items()},
        {
            client: [(name, _tensor_digest(tensor)) for name, tensor in weights.items()]
            for client, weights in observation.own_updates.items()
        },
        {name: dict(options) for name, options in observation.scheme.items()},
        {str(oracle): _tensor_digest(value) for oracle, value in observation.oracles.items()},
    )


def _matrices_digest(matrices: Mapping[str, scipy.sparse.csr_array]) -> list[tuple[str, str]]:
    return [
        (name, hashlib.sha256(m.data.tobytes() + m.indices.tobytes() + m.indptr.tobytes()).hexdigest())
        for name, m in matrices.items()
    ]


def _tensor_digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
