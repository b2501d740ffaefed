"""The report of the PriDe reproduction."""

from __future__ import annotations

from pathlib import Path

from benchmark.store.pride import PrideResult, read_pride
from leaderboard.figures import Picture
from leaderboard.reproduction.page import ReproductionPage, Section
from leaderboard.reproduction.pride_figures import draw_pride
from leaderboard.reproduction.pride_tables import accuracy_table, adversary_table, deviation_table, time_table
from leaderboard.reproduction.report import ReproductionReport, write_reproduction

TITLE = "PriDe (Pavlak 2018), reproduced"


def write_pride_report(folder: Path) -> ReproductionReport:
    """Read the result in `folder` and write its report.

    Raises:
        DataError: the result is missing, malformed, or names images that are not there.
    """
    result = read_pride(folder)
    return write_reproduction(folder, "pride", _page(result, draw_pride(result, folder)))


def _page(result: PrideResult, pictures: list[Picture]) -> ReproductionPage:
    named = {picture.name: picture for picture in pictures}
    sections = (
        Section(
            "accuracy",
            "Accuracy",
            "The paper's figures beside those of its own procedure and beside sound ones. Printed figures and those as"
            " coded are each on another slice of the test set; only the sound column compares models on the same images.",
            [accuracy_table(result)],
            [named["accuracy"], named["slices"]],
        ),
        Section(
            "deviations",
            "What changes the figures",
            "Where the paper's procedure departs from what its figures are read as, and what that does.",
            [deviation_table(result)],
        ),
        Section(
            "adversaries",
            "Who recovers what",
            "The protocol as the paper wrote it, attacked by everyone who takes part and by one who only listens.",
            [adversary_table(result)],
            [picture for picture in pictures if picture.kind == "reconstructions"],
        ),
        Section(
            "time", "Time", "What encryption adds to training, in sequence and in parallel.", [time_table(result)],
            [named["times"]],
        ),
        Section(
            "confusion",
            "Confusion matrices",
            "Every model that was computed, on the test images of its column.",
            pictures=[picture for picture in pictures if picture.kind == "confusion"],
        ),
    )  # fmt: skip
    lead = (
        "Federated logistic regression under Paillier encryption: six parties average their weights, the first is the"
        f" cloud and holds the private key. {result.setting.label}."
    )
    return ReproductionPage(TITLE, lead, result.manifest, sections)
