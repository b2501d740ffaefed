"""The stored reproduction of Gusain (2021) with its runs, as its tables and figures look things up in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.store import RunTables, VictimKind, read_run
from benchmark.store.gusain import (
    AlgorithmName,
    GusainResult,
    NetworkName,
    NetworkResult,
    Reader,
    TableEntry,
    read_gusain,
)
from leaderboard.lines import Line, gather_lines
from leaderboard.trainings import TrainingSummary, summarise_trainings

PAPERS_ATTACK = "cosine"
"""The attack of the paper's figures (Geiping 2020)."""

NETWORK_TITLES: dict[NetworkName, str] = {"lenet": "LeNet on MNIST", "mobilenet": "MobileNetV2 on CIFAR-10"}
ALGORITHM_TITLES: dict[AlgorithmName, str] = {"fedavg": "FedAvg", "fedpaq": "FedPAQ"}
"""As the paper writes them."""


@dataclass(frozen=True)
class NetworkRun:
    """One network: what the result says of it, and its run, gathered."""

    result: NetworkResult
    tables: RunTables
    lines: list[Line]
    trainings: list[TrainingSummary]

    def class_name(self, index: int) -> str:
        """What the data call a class; its number where no training names it."""
        classes = self.trainings[0].classes if self.trainings else []
        return classes[index] if 0 <= index < len(classes) else str(index)


@dataclass(frozen=True)
class Pair:
    """Two entries of Table 4.1 that differ in encryption alone."""

    network: NetworkName
    algorithm: AlgorithmName
    plain: TableEntry
    encrypted: TableEntry

    @property
    def title(self) -> str:
        return f"{NETWORK_TITLES[self.network]}, {ALGORITHM_TITLES[self.algorithm]}"


@dataclass(frozen=True)
class Reproduction:
    """The result, and the runs of the networks that it has."""

    result: GusainResult
    directory: Path
    runs: dict[NetworkName, NetworkRun]

    def training(self, entry: TableEntry) -> TrainingSummary | None:
        """The trainings behind an entry over all seeds; None where they were not run."""
        run = self.runs.get(entry.network)
        if run is None:
            return None
        return next((item for item in run.trainings if not item.reference and _is(entry, item)), None)

    def by_round(self, entry: TableEntry, reader: Reader, kind: VictimKind) -> dict[int, Line]:
        """One attack a round on what an entry shares; empty where none was run.

        The paper's attack where it was scored, else whichever finds most: a reader who knows of the encryption may have
        none but an attack of his own.
        """
        chosen: dict[int, Line] = {}
        run = self.runs.get(entry.network)
        for line in [] if run is None else run.lines:
            setting = line.setting
            if (
                (line.role, line.defense, setting.victim_kind) == ("attack", entry.defense, kind)
                and (setting.position, setting.knowledge) == (reader.position, reader.knowledge)
                and setting.algorithm.startswith(entry.algorithm)
            ):
                chosen[line.snapshot] = max(chosen.get(line.snapshot, line), line, key=_preference)
        return chosen

    @property
    def pairs(self) -> Iterator[Pair]:
        """The entries of Table 4.1, two by two, in its order."""
        encrypted = {(one.network, one.algorithm): one for one in self.result.entries if one.encrypted}
        for one in self.result.entries:
            if not one.encrypted:
                yield Pair(one.network, one.algorithm, one, encrypted[one.network, one.algorithm])

    @property
    def plain_reader(self) -> Reader:
        """Who reads unencrypted weights: there is nothing to know about a defense, so whoever knows least."""
        oblivious = [reader for reader in self.result.readers if reader.knowledge == "oblivious"]
        return (oblivious or self.result.readers)[0]

    def reader_title(self, position: str, knowledge: str) -> str:
        """What an adversary is in the paper's terms, or else its name."""
        for reader in self.result.readers:
            if (reader.position, reader.knowledge) == (position, knowledge):
                return reader.title
        return f"{position}/{knowledge}"


def _preference(line: Line) -> tuple[Any, ...]:
    return line.summary is not None, line.attack == PAPERS_ATTACK, line.leakage


def in_words(reader: Reader) -> str:
    """Who a reader is, by the name that the other reports use, and what that means."""
    return f"{reader.title} ({reader.position}/{reader.knowledge}): {reader.meaning}"


def algorithm_title(label: str) -> str:
    """An algorithm of a run, "fedavg disjoint-classes K=2" say, as the paper writes it."""
    return next((title for name, title in ALGORITHM_TITLES.items() if label.startswith(name)), label)


def sentences(*parts: str) -> str:
    """Parts of a caption, each with one full stop."""
    return " ".join(f"{part.rstrip().removesuffix('.')}." for part in parts if part)


def read_reproduction(directory: Path) -> Reproduction:
    """Read the result in `directory` and the runs that it names.

    Raises:
        DataError: the result or a run is missing or malformed.
    """
    result = read_gusain(directory)
    return Reproduction(result, directory, {one.network: _read(directory, one) for one in result.networks})


def _read(directory: Path, network: NetworkResult) -> NetworkRun:
    tables = read_run(directory / network.folder)
    return NetworkRun(network, tables, gather_lines(tables), summarise_trainings(tables))


def _is(entry: TableEntry, training: TrainingSummary) -> bool:
    return training.defense == entry.defense and training.algorithm.startswith(entry.algorithm)
