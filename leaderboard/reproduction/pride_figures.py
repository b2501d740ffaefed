"""The figures of the PriDe reproduction."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from benchmark.store.pride import COLUMNS, Column, PrideResult
from leaderboard.figures.style import QUIET, Picture, look, png
from leaderboard.reproduction.pride_confusion import confusion_matrices
from leaderboard.reproduction.pride_pictures import recovered_digits, weight_pictures
from leaderboard.reproduction.pride_tables import HEADINGS

_COLOURS = dict(zip(COLUMNS, ("#7b8794", "#e09f3e", "#f3d9a4", "#1c5fa8"), strict=True))
"""The paper's figures in grey, its procedure in ochre, the sound column in blue."""


def accuracy_bars(result: PrideResult) -> Picture:
    """Accuracy of every model in every column."""
    points = pd.DataFrame(
        [{"Model": row.model, "Column": HEADINGS[row.column], "accuracy": 100 * row.accuracy} for row in result.models]
    )
    with look():
        figure = Figure(figsize=(11.5, 4.2), layout="constrained")
        axes = figure.subplots()
        palette = {HEADINGS[column]: colour for column, colour in _COLOURS.items()}
        order = [HEADINGS[column] for column in COLUMNS]
        sns.barplot(points, x="Model", y="accuracy", hue="Column", hue_order=order, palette=palette, ax=axes)
        lowest = float(points["accuracy"].min())
        axes.set(xlabel="", ylabel="Accuracy (%)", ylim=(min(70, 10 * (lowest // 10)), 100))
        axes.set_xticks(range(len(result.model_names)), [name.replace(" + ", " +\n") for name in result.model_names])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=4)
        return Picture(
            kind="accuracy",
            name="accuracy",
            title="Accuracy as printed, as coded, and sound",
            caption=(
                "The axis does not begin at 0. Printed and as coded: on each party's own test slice, averages on the"
                f" cloud's ({result.setting.slices[0]} images here, 200 in the paper). Sound: on all"
                f" {result.setting.test:,} test images. Printed figures are of full-size MNIST. {result.setting.source}"
            ),
            png=png(figure),
        )


def slice_accuracy(result: PrideResult) -> Picture:
    """One model on consecutive slices of the test set."""
    values = [100 * one.accuracy for one in result.slices]
    whole = result.find("party 0", "sound")
    printed = result.find("six parties", "printed")
    assert whole is not None, "the cloud is always scored"
    assert printed is not None, "the paper prints it"
    with look():
        figure = Figure(figsize=(7.6, 3.2), layout="constrained")
        axes = figure.subplots()
        starts = [one.start for one in result.slices]
        axes.plot(starts, values, "o", color=_COLOURS["coded"], markeredgecolor="white", markersize=7)
        axes.axhline(100 * whole.accuracy, color=_COLOURS["sound"], linewidth=1.5, label="the same model on all")
        label = "printed: six-party average, on one slice of full-size MNIST"
        axes.axhline(100 * printed.accuracy, color=QUIET, linestyle="--", linewidth=1.2, label=label)
        axes.set(xlabel="First test image of the slice", ylabel="Accuracy (%)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
        return Picture(
            kind="accuracy",
            name="slices",
            title="One model, many test slices",
            caption=(
                f"The cloud's model alone on every slice of {result.slices[0].count} consecutive test images:"
                f" {min(values):.1f} to {max(values):.1f}%. {result.setting.source}"
            ),
            png=png(figure),
        )


def time_bars(result: PrideResult) -> Picture:
    """Time in sequence and in parallel of every average."""
    averages = [name for name in result.model_names if "party" in name and "+" in name] + ["six parties"]
    chosen: tuple[Column, ...] = ("printed", "coded", "sound")
    with look():
        figure = Figure(figsize=(11.5, 3.8), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, measure, title in zip(panels, ("sequence", "parallel"), ("In sequence", "In parallel"), strict=True):
            rows = [
                {"Model": name, "Column": HEADINGS[column], "seconds": getattr(row.times, measure)}
                for name in averages
                for column in chosen
                if (row := result.find(name, column)) is not None and getattr(row.times, measure) is not None
            ]
            palette = {HEADINGS[column]: _COLOURS[column] for column in chosen}
            frame = pd.DataFrame(rows)
            sns.barplot(
                frame, x="Model", y="seconds", hue="Column", order=averages, hue_order=list(palette),
                palette=palette, ax=axes, legend=axes is panels[0],
            )  # fmt: skip
            axes.set(title=title, xlabel="", ylabel="Seconds", yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xticks(range(len(averages)), [name.replace(" + ", " +\n") for name in averages])
        panels[0].get_legend().remove()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        return Picture(
            kind="accuracy",
            name="times",
            title="Time: training, encryption, aggregation, decryption",
            caption=(
                "Logarithmic. The paper prints one time for two parties and both for six. As coded: real phe objects, a"
                f" key of {result.setting.key_bits} bits. {result.setting.source}"
            ),
            png=png(figure),
        )


def draw_pride(result: PrideResult, directory: Path) -> list[Picture]:
    """All figures, in reading order.

    Raises:
        DataError: an image that the result names is missing or unreadable.
    """
    return [
        accuracy_bars(result),
        slice_accuracy(result),
        time_bars(result),
        recovered_digits(result, directory),
        weight_pictures(result, directory),
        *confusion_matrices(result),
    ]
