"""The report of a reproduction, written into its folder `report/`: page, Markdown, CSV and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from federation.files import write_bytes, write_text
from leaderboard.reproduction.page import ReproductionPage, build_reproduction_page
from leaderboard.tables import Table, TerminalTables, csv_text, markdown_text


@dataclass(frozen=True)
class ReproductionReport:
    """Where the report was written. `terminal` prints with rich, without what the page folds away."""

    directory: Path
    page: Path
    files: tuple[Path, ...]
    terminal: TerminalTables


def write_reproduction(folder: Path, paper: str, content: ReproductionPage) -> ReproductionReport:
    """Write the report of `paper` ("pride", say) below `folder`; files are replaced one by one, each as a whole.

    Tables whose context names the same `table` have the same columns and share one CSV file.
    """
    directory = folder / "report"
    tables = content.all_tables
    texts = {
        "index.html": build_reproduction_page(content),
        f"{paper}.md": f"# {content.title}\n\n{markdown_text(tables)}",
        **{f"tables/{name}.csv": csv_text(alike) for name, alike in _by_name(tables).items()},
    }
    images = {f"figures/{picture.name}.png": picture.png for picture in content.pictures}
    for name, text in texts.items():
        write_text(directory / name, text)
    for name, png in images.items():
        write_bytes(directory / name, png)
    return ReproductionReport(
        directory=directory,
        page=directory / "index.html",
        files=tuple(directory / name for name in (*texts, *images)),
        terminal=TerminalTables(content.tables),
    )


def _by_name(tables: list[Table]) -> dict[str, list[Table]]:
    named: dict[str, list[Table]] = {}
    for table in tables:
        named.setdefault(table.context["table"], []).append(table)
    return named
