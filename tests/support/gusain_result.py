"""A stored result of the Gusain reproduction and LeNet's run, made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark.store import Manifest
from benchmark.store.documents import Deviation
from benchmark.store.gusain import (
    AlgorithmName,
    EncryptedExample,
    EncryptedVictim,
    GusainResult,
    InferenceRefusal,
    InferenceRow,
    NetworkName,
    NetworkResult,
    Reader,
    TableEntry,
)

HOSTILE = "<img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}$x_1$"
LABEL = "quick: embedded data, not the paper's size"
FEDAVG, FEDPAQ = "fedavg disjoint-classes K=2", "fedpaq disjoint-classes K=2 tau=5"
PRINTED: dict[tuple[NetworkName, AlgorithmName], tuple[float, float]] = {
    ("lenet", "fedavg"): (0.98, 0.96),
    ("mobilenet", "fedavg"): (0.84, 0.82),
    ("lenet", "fedpaq"): (0.98, 0.96),
    ("mobilenet", "fedpaq"): (0.82, 0.86),
}
DEFENSES = {"fedavg": ("plain", "keynet"), "fedpaq": ("qsgd", "keynet-quantized")}
READERS = [
    Reader("server", "oblivious", "oblivious", "The paper's attacker."),
    Reader("server", "adaptive", "knowing the scheme", "It lacks the key."),
    Reader("collusion", "adaptive", "with the key", "The server with one client."),
]
SHARED = {"stream": "shared", "task": "mnist5k-lenet5"}


def run_of_lenet(builder: Any) -> Any:
    """Three rounds of both algorithms and both kinds of victim; one cell of the oblivious reader crashed."""
    for algorithm, defenses in ((FEDAVG, DEFENSES["fedavg"]), (FEDPAQ, ("plain", *DEFENSES["fedpaq"]))):
        for defense in defenses:
            keyed = defense.startswith("keynet")
            builder.train(
                defense,
                task="mnist5k-lenet5",
                algorithm=algorithm,
                accuracy=0.9 if keyed else 0.92,
                aggregation_error=2e-3 if defense == "keynet-quantized" else 1e-7,
                stated_error=1e-3 if keyed else 1e-6,
                seconds_keys=0.5 if keyed else 0.0,
                seconds_protect=0.25,
                seconds_aggregate=0.25,
                seconds_recover=0.25,
                seconds_train=2.75 if keyed else 3.25,
            )
            for kind in ("real-round", "probe"):
                for snapshot in (0, 1, 2):
                    attack_each_reader(builder, algorithm, defense, kind, snapshot)
    return builder


def attack_each_reader(builder: Any, algorithm: str, defense: str, kind: str, snapshot: int) -> None:
    common = {**SHARED, "algorithm": algorithm, "victim_kind": kind, "snapshot": snapshot}
    keyed = defense.startswith("keynet")
    for reader in READERS:
        whose = {**common, "position": reader.position, "knowledge": reader.knowledge}
        if not keyed or reader.position == "collusion":
            builder.attack(defense, gain=12 - 3 * snapshot, identified=1.0, **whose)
        elif reader.knowledge == "adaptive":
            builder.attack(defense, outcome="not evaluated", detail="no attack knows it", **whose)
        elif (algorithm, kind, snapshot) == (FEDAVG, "probe", 1):
            builder.attack(defense, outcome="crashed", detail="out of memory", **whose)
        else:
            builder.attack(defense, gain=-4, **whose)


def made_up() -> GusainResult:
    """A result with LeNet alone."""
    examples = [
        EncryptedExample("permutations", label, label, label, 9, "inference/plain.png", "inference/keyed.png")
        for label in range(4)
    ]
    lenet = NetworkResult(
        network="lenet",
        title="LeNet on MNIST",
        folder="lenet",
        task="mnist5k-lenet5",
        setting="LeNet-5 on mnist5k",
        departures=["5,000 digits in place of 70,000."],
        training="2 rounds of one epoch.",
        budget="cosine: 400 gradient evaluations.",
        victims="3 probes of one raw image.",
        inference=[InferenceRow("permutations", 200, 0.97, 0.97, 1.0, 1e-6, 20.0, 0.1, 30.0, 1000, 2000, 0.001, 0.01)],
        refusals=[InferenceRefusal("gains up to 2", HOSTILE)],
        examples=examples,
        encrypted_victims=[EncryptedVictim("permutations", "lenet/images/original-0.png", "inference/keyed.png")],
    )
    entries = [
        TableEntry(network, algorithm, encrypted, PRINTED[network, algorithm][encrypted], DEFENSES[algorithm][encrypted])
        for network, algorithm in PRINTED
        for encrypted in (False, True)
    ]  # fmt: skip
    return GusainResult(
        manifest=Manifest(
            name="gusain",
            created="2026-01-01T00:00:00+00:00",
            preset="",
            config={"scale": HOSTILE},
            versions={"python": "3.11"},
            git_commit="c" * 40,
            git_dirty=False,
            hardware={"cpu": HOSTILE, "cores": 2, "memory": 1},
            datasets={"mnist5k": "d" * 64},
            lpips_trunk=None,
        ),
        scale="quick",
        label=LABEL,
        seeds=[0, 1],
        entries=entries,
        readers=READERS,
        networks=[lenet],
        deviations=[Deviation("The paper's 2% drop", f"not floating point; {HOSTILE}")],
        seconds=60.0,
    )


def draw_keyed_pictures(folder: Path) -> None:
    """The pictures of encrypted inference that `made_up` names."""
    rng = np.random.default_rng(0)
    (folder / "inference").mkdir()
    for name in ("plain", "keyed"):
        Image.fromarray(rng.integers(0, 256, (28, 28)).astype(np.uint8)).save(folder / "inference" / f"{name}.png")
