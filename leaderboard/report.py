"""Everything a run shows, written into its folder `report/`: one page, Markdown, CSV and LaTeX tables, and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.store import RunTables, read_run
from federation.files import write_bytes, write_text
from leaderboard.figures import draw_figures
from leaderboard.figures.style import file_name
from leaderboard.lines import gather_lines
from leaderboard.ranking import Ranking, rank_lines
from leaderboard.site.build import PageContent, build_page
from leaderboard.tables import (
    Table,
    TerminalTables,
    attack_tables,
    csv_text,
    glance_tables,
    latex_text,
    leaderboard_tables,
    markdown_text,
    training_tables,
)
from leaderboard.trainings import summarise_trainings


@dataclass(frozen=True)
class Report:
    """What was concluded from a run, and where it was written. `leaderboards` and `trainings` print on a terminal."""

    directory: Path
    page: Path
    files: tuple[Path, ...]
    rankings: tuple[Ranking, ...]
    leaderboards: TerminalTables
    trainings: TerminalTables


def write_report(run: Path | str) -> Report:
    """Read the run in a folder and write its report.

    Raises:
        DataError: the run is missing, malformed, or names images that are not there.
    """
    return report_tables(read_run(run))


def report_tables(tables: RunTables) -> Report:
    """The same for a run already read; files are replaced one by one, each as a whole."""
    directory = tables.directory / "report"
    lines = gather_lines(tables)
    rankings = rank_lines(lines)
    summaries = summarise_trainings(tables)
    content = PageContent(
        manifest=tables.manifest,
        glance=glance_tables(rankings),
        leaderboards=leaderboard_tables(rankings, summaries),
        trainings=training_tables(summaries),
        attacks=attack_tables(lines),
        pictures=draw_figures(tables.directory, rankings, summaries),
    )
    texts = {
        "index.html": build_page(content),
        "leaderboard.md": _markdown(content),
        "tables/leaderboard.csv": csv_text(content.leaderboards),
        "tables/trainings.csv": csv_text(content.trainings),
        "tables/attacks.csv": csv_text(content.attacks),
        **{f"tables/{_latex_name(table)}.tex": latex_text(table) for table in content.leaderboards},
    }
    for name, written in texts.items():
        write_text(directory / name, written)
    for picture in content.pictures:
        write_bytes(directory / "figures" / f"{picture.name}.png", picture.png)
    names = [*texts, *(f"figures/{picture.name}.png" for picture in content.pictures)]
    return Report(
        directory=directory,
        page=directory / "index.html",
        files=tuple(directory / name for name in names),
        rankings=tuple(rankings),
        leaderboards=TerminalTables(content.leaderboards),
        trainings=TerminalTables(content.trainings),
    )


def _latex_name(table: Table) -> str:
    return file_name("leaderboard", *table.context.values())


def _markdown(content: PageContent) -> str:
    manifest = content.manifest
    dirty = " with uncommitted changes" if manifest.git_dirty else ""
    parts = [
        f"# {manifest.name}\n\nCommit {manifest.git_commit}{dirty}, evaluator version {manifest.evaluator_version}.\n",
        markdown_text(content.glance),
        markdown_text(content.leaderboards),
        markdown_text(content.trainings),
        markdown_text(content.attacks),
    ]
    return "\n".join(parts)
