"""What training costs in communication: rounds and bytes until a model is good, by algorithm and by defense."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmark.store import UNDEFENDED
from leaderboard.figures.style import INK, QUIET, Picture, Styles, file_name, look, png
from leaderboard.tables.model import size
from leaderboard.trainings import TrainingSummary

TARGET_SHARE = 0.95
"""A model is good once it has this share of the accuracy that the best undefended training of its task ends with."""

SENT = "Bytes that a participating client has sent"


@dataclass(frozen=True)
class Reached:
    """How far a training went until its mean accuracy over the seeds was at the target, or how far it went without.

    Attributes:
        rounds: that it took, or all.
        sent: bytes that a client which took part in each of them sent.
        within: whether it reached the target.
    """

    rounds: int
    sent: float
    within: bool

    @classmethod
    def of(cls, item: TrainingSummary, target: float) -> Reached:
        """From a training's curve."""
        curve = item.accuracy_by_round.mean(axis=0)
        good = np.flatnonzero(curve >= target)
        rounds = int(good[0]) if good.size else len(curve) - 1
        return cls(rounds, rounds * item.mean("bytes_up"), bool(good.size))


def draw_communication(trainings: Sequence[TrainingSummary], styles: Styles) -> Iterator[Picture]:
    """Per task: one figure a defense that was trained by several algorithms, and one of all bytes where they differ."""
    federated = [item for item in trainings if not item.reference]
    for task, members in groupby(federated, key=lambda item: item.task):
        items = sorted(members, key=lambda item: _natural(item.algorithm))
        for defense in dict.fromkeys(item.defense for item in items):
            by_algorithm = [item for item in items if item.defense == defense]
            if len(by_algorithm) > 1:
                yield _progress(task, defense, by_algorithm, target_of(items))
        target = target_of(items)
        if target is not None and len({item.mean("bytes_up") for item in items}) > 1:
            yield _traffic(task, items, target, styles)


def target_of(items: Sequence[TrainingSummary]) -> float | None:
    """The accuracy to reach, 0 to 1, from the undefended trainings of a task; None where there are none."""
    undefended = [item.accuracy for item in items if item.defense == UNDEFENDED]
    return TARGET_SHARE * max(undefended) if undefended else None


def _progress(task: str, defense: str, items: Sequence[TrainingSummary], target: float | None) -> Picture:
    """Accuracy over rounds, and over what a client has sent."""
    with look():
        figure = Figure(figsize=(10.4, 4.0), layout="constrained")
        by_round, by_bytes = figure.subplots(1, 2, sharey=True)
        for item, colour in zip(items, sns.color_palette("colorblind", len(items)), strict=True):
            curves = 100 * item.accuracy_by_round
            rounds = np.arange(curves.shape[1])
            for axes, along in ((by_round, rounds), (by_bytes, rounds * item.mean("bytes_up"))):
                axes.plot(along[1:], curves.mean(axis=0)[1:], color=colour, linewidth=1.8, label=item.algorithm)
                axes.fill_between(along[1:], curves.min(axis=0)[1:], curves.max(axis=0)[1:], color=colour, alpha=0.15)
        by_round.set(xlabel="Round of communication", ylabel="Test accuracy (%)")
        by_round.xaxis.set_major_locator(MaxNLocator(integer=True))
        _byte_axis(by_bytes)
        for axes in (by_round, by_bytes):
            if target is not None:
                axes.axhline(100 * target, color=QUIET, linestyle="--", linewidth=1.2)
        by_bytes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        drawn = png(figure)
    return Picture(
        kind="accuracy",
        name=file_name("communication", task, defense),
        title=f"Accuracy by communication: {task}, {defense}",
        caption=(
            "Test accuracy after each round, over the rounds (left) and over the bytes that a client which takes part in"
            " each of them has sent (right); line: mean over seeds, band: lowest to highest seed. C is the share of the"
            f" clients that take part in a round (all where there is none), tau their local steps.{_target_words(target)}"
            f" {items[0].text('provenance')}."
        ),
        png=drawn,
    )


def _traffic(task: str, items: Sequence[TrainingSummary], target: float, styles: Styles) -> Picture:
    """Bytes until the target, one row a training; those that never reach it have an open marker."""
    with look():
        figure = Figure(figsize=(9.6, 0.34 * len(items) + 1.2), layout="constrained")
        axes = figure.subplots()
        outcomes = [Reached.of(item, target) for item in items]
        for row, (item, reached) in enumerate(zip(items, outcomes, strict=True)):
            colour = styles.colours.get(item.defense, INK)
            axes.plot(reached.sent, row, styles.markers.get(item.defense, "o"), color=colour, markersize=8,
                      markerfacecolor=colour if reached.within else "white")  # fmt: skip
            words = f"{size(reached.sent)}, {reached.rounds} rounds"
            if not reached.within:
                words = f"not reached: {100 * item.accuracy:.1f}% after {words}"
            axes.annotate(
                words, (reached.sent, row), (9, 0), textcoords="offset points", va="center", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
        axes.set_yticks(range(len(items)), [f"{item.algorithm}:  {item.defense}" for item in items], fontsize=8.5)
        axes.set_ylim(len(items) - 0.4, -0.6)
        _byte_axis(axes)
        sent = [reached.sent for reached in outcomes]
        axes.set_xlim(min(sent) / 2, max(sent) * 8)  # room for the words
        drawn = png(figure)
    return Picture(
        kind="accuracy",
        name=file_name("bytes-to-target", task),
        title=f"Bytes to a target accuracy: {task}",
        caption=(
            "Bytes that a client which takes part in every round has sent, keys not counted, when the mean test accuracy"
            " over the seeds first is at the target; an open marker never is, and stands at all that was sent."
            f"{_target_words(target)} {items[0].text('provenance')}."
        ),
        png=drawn,
    )


def _natural(name: str) -> list[tuple[float, str]]:
    """Sorts names by the numbers in them: tau=5 before tau=20."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if index % 2 else (0.0, part) for index, part in enumerate(parts)]


def _byte_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(SENT)
    axes.xaxis.set_major_formatter(lambda value, _: size(value))


def _target_words(target: float | None) -> str:
    if target is None:
        return ""
    return (
        f" Target: {100 * target:.1f}%, {100 * TARGET_SHARE:.0f}% of what the best undefended training of the task ends"
        f" with ({UNDEFENDED}: weights as they are, quantised by nothing)."
    )
