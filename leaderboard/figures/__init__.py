"""The figures of a run, one kind a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leaderboard.figures.accuracy import draw_accuracy
from leaderboard.figures.communication import draw_communication
from leaderboard.figures.conditions import draw_conditions
from leaderboard.figures.confusion import draw_confusion
from leaderboard.figures.knowledge import draw_knowledge
from leaderboard.figures.leaks import draw_leaks
from leaderboard.figures.matrix import draw_matrices
from leaderboard.figures.reconstructions import draw_reconstructions
from leaderboard.figures.style import KINDS, Picture, Styles
from leaderboard.figures.tradeoff import draw_tradeoffs
from leaderboard.ranking import Ranking
from leaderboard.trainings import TrainingSummary

__all__ = ["KINDS", "Picture", "draw_figures"]


def draw_figures(directory: Path, rankings: Sequence[Ranking], trainings: Sequence[TrainingSummary]) -> list[Picture]:
    """Draw all figures of the run that stands in `directory`.

    Raises:
        DataError: an image that the run names is missing or unreadable.
    """
    names = [entry.defense for ranking in rankings for entry in ranking.entries]
    names += [item.defense for item in trainings if not item.reference]
    styles = Styles.of(names)
    return [
        *draw_tradeoffs(rankings, trainings, styles),
        *draw_knowledge(rankings, trainings, styles),
        *draw_matrices(rankings, trainings),
        *draw_conditions(rankings, trainings, styles),
        *draw_leaks(rankings, trainings, styles),
        *draw_accuracy(trainings, styles),
        *draw_communication(trainings, styles),
        *draw_reconstructions(directory, rankings, trainings),
        *draw_confusion(trainings),
    ]
