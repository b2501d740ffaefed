"""Figure 4.1 with ours beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leaderboard.figures.style import INK, QUIET, Picture, look, png
from leaderboard.reproduction.gusain_runs import ALGORITHM_TITLES, NETWORK_TITLES, Reproduction, sentences
from leaderboard.reproduction.gusain_tables import NOT_RUN

_BARS = {"without encryption": "#7b8794", "with encryption": "#1c5fa8"}
_ABSENT_HEIGHT = 12
"""Height of the hatched bar of what was not run, in percent."""


def accuracy_bars(found: Reproduction) -> Picture:
    """Figure 4.1: printed on the left, ours on the right."""
    groups = [f"{NETWORK_TITLES[pair.network].split()[0]}\n{ALGORITHM_TITLES[pair.algorithm]}" for pair in found.pairs]
    with look():
        figure = Figure(figsize=(11, 4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, title, rows in zip(panels, ("Printed", "Ours"), (_printed(found), _ours(found)), strict=True):
            _bars(axes, pd.DataFrame(rows), groups)
            axes.set(title=title, xlabel="", ylabel="Accuracy (%)", ylim=(0, 105))
        handles, labels = panels[0].get_legend_handles_labels()
        for axes in panels:
            axes.get_legend().remove()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
        return Picture(
            kind="accuracy",
            name="figure-4-1",
            title="Figure 4.1: accuracy without and with encryption, printed and ours",
            caption=sentences(
                found.result.label,
                "Beside Figure 4.1 of the paper, drawn from its Table 4.1",
                "Ours: means over seeds, strokes from the lowest to the highest seed; hatched: not run",
            ),
            png=png(figure),
        )


def _printed(found: Reproduction) -> list[dict[str, object]]:
    return [
        {"group": index, "Weights": name, "accuracy": 100 * entry.printed}
        for index, pair in enumerate(found.pairs)
        for name, entry in zip(_BARS, (pair.plain, pair.encrypted), strict=True)
    ]


def _ours(found: Reproduction) -> list[dict[str, object]]:
    """One row a seed; a row without a number where nothing was run."""
    rows: list[dict[str, object]] = []
    for index, pair in enumerate(found.pairs):
        for name, entry in zip(_BARS, (pair.plain, pair.encrypted), strict=True):
            training = found.training(entry)
            values = [None] if training is None else [100 * value for value in training.rows["accuracy"]]
            rows += [{"group": index, "Weights": name, "accuracy": value} for value in values]
    return rows


def _bars(axes: Axes, points: pd.DataFrame, groups: Sequence[str]) -> None:
    points["accuracy"] = points["accuracy"].astype(float)
    sns.barplot(
        points, x="group", y="accuracy", hue="Weights", order=range(len(groups)), hue_order=list(_BARS),
        palette=_BARS, errorbar=("pi", 100), err_kws={"linewidth": 1.2, "color": INK}, ax=axes,
    )  # fmt: skip
    axes.set_xticks(range(len(groups)), groups)
    means = points.groupby(["group", "Weights"])["accuracy"].mean()
    for offset, name in zip((-0.2, 0.2), _BARS, strict=True):
        for group in range(len(groups)):
            mean = means[group, name]
            if pd.notna(mean):
                axes.text(group + offset, mean + 1.5, f"{mean:.1f}", ha="center", va="bottom", fontsize=8)
                continue
            axes.bar(group + offset, _ABSENT_HEIGHT, 0.4, fill=False, hatch="///", edgecolor=QUIET, linewidth=0.8)
            axes.text(group + offset, _ABSENT_HEIGHT + 1.5, NOT_RUN, ha="center", va="bottom", fontsize=7, color=QUIET)
