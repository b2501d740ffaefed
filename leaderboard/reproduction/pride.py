"""The report of the PriDe reproduction, written into its folder `report/`: page, Markdown, CSV and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.store.pride import PrideResult, read_pride
from federation.files import write_bytes, write_text
from leaderboard.figures import Picture
from leaderboard.reproduction.page import ReproductionPage, Section, build_reproduction_page
from leaderboard.reproduction.pride_figures import draw_pride
from leaderboard.reproduction.pride_tables import (
    accuracy_table,
    adversary_table,
    deviation_table,
    pride_tables,
    time_table,
)
from leaderboard.tables import TerminalTables, csv_text, markdown_text

TITLE = "PriDe (Pavlak 2018), reproduced"


@dataclass(frozen=True)
class PrideReport:
    """Where the report was written. `terminal` prints with rich."""

    directory: Path
    page: Path
    files: tuple[Path, ...]
    terminal: TerminalTables


def write_pride_report(folder: Path) -> PrideReport:
    """Read the result in `folder` and write its report; files are replaced one by one, each as a whole.

    Raises:
        DataError: the result is missing, malformed, or names images that are not there.
    """
    result = read_pride(folder)
    directory = folder / "report"
    tables = pride_tables(result)
    pictures = draw_pride(result, folder)
    texts = {
        "index.html": build_reproduction_page(_page(result, pictures)),
        "pride.md": f"# {TITLE}\n\n{markdown_text(tables)}",
        **{f"tables/{table.context['table']}.csv": csv_text([table]) for table in tables},
    }
    for name, content in texts.items():
        write_text(directory / name, content)
    for picture in pictures:
        write_bytes(directory / "figures" / f"{picture.name}.png", picture.png)
    names = [*texts, *(f"figures/{picture.name}.png" for picture in pictures)]
    return PrideReport(
        directory=directory,
        page=directory / "index.html",
        files=tuple(directory / name for name in names),
        terminal=TerminalTables(tables),
    )


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
