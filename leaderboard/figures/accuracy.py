"""Accuracy by round: what a defense costs on the way, beside training without federation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmark.store import UNDEFENDED
from leaderboard.figures.style import QUIET, Picture, Styles, file_name, look, png
from leaderboard.trainings import TrainingSummary

REFERENCE_DASHES = ("--", ":", "-.")


def draw_accuracy(trainings: Sequence[TrainingSummary], styles: Styles) -> Iterator[Picture]:
    """One figure a task and algorithm."""
    for (task, algorithm), members in groupby(trainings, key=lambda item: (item.task, item.algorithm)):
        items = list(members)
        federated = [item for item in items if not item.reference]
        if not federated:
            continue
        yield Picture(
            kind="accuracy",
            name=file_name("accuracy", task, algorithm),
            title=f"Accuracy by round: {task}, {algorithm}",
            caption=(
                "Test accuracy after each round, from before training (round 0); line: mean over seeds, band: lowest to"
                " highest seed. Lines that coincide lie on one another. Horizontal lines: training without federation."
                f" {federated[0].text('provenance')}."
            ),
            png=_draw(federated, [item for item in items if item.reference], styles),
        )


def _draw(federated: Sequence[TrainingSummary], references: Sequence[TrainingSummary], styles: Styles) -> bytes:
    points = pd.DataFrame(
        [
            {"Defense": item.defense, "Round": index, "accuracy": 100 * value}
            for item in federated
            for curve in item.accuracy_by_round
            for index, value in enumerate(curve)
        ]
    )
    with look():
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        axes = figure.subplots()
        sns.lineplot(
            points,
            x="Round",
            y="accuracy",
            hue="Defense",
            style="Defense",
            palette=styles.colours,
            markers=styles.markers,
            dashes=False,
            size="Defense",
            # What coincides with the undefended line is seen lying on it.
            sizes={item.defense: 4.0 if item.defense == UNDEFENDED else 1.8 for item in federated},
            errorbar=("pi", 100),
            markersize=7,
            ax=axes,
        )
        for item, dashes in zip(references, REFERENCE_DASHES, strict=False):
            axes.axhline(100 * item.accuracy, color=QUIET, linestyle=dashes, linewidth=1.3, label=item.reference)
        axes.set(xlabel="Round", ylabel="Test accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return png(figure)
