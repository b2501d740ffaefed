"""What commands print of a report: the leaderboard for people, or as JSON for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer
from rich.console import Console

from leaderboard.ranking import Ranking
from leaderboard.report import Report

WIDTH_ELSEWHERE = 120


def print_report(report: Report) -> None:
    """The leaderboards and the table of trainings, on the terminal."""
    # a pipe or log has no width of its own; the tables fit this one
    console = Console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE)
    console.print(report.leaderboards)
    console.print(report.trainings)


def print_json(report: Report) -> None:
    """The leaderboards as one JSON list, one object a defense and setting."""
    typer.echo(json.dumps([entry for ranking in report.rankings for entry in _entries(ranking)], indent=2))


def shown(path: Path) -> str:
    """The path as a person would type it from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _entries(ranking: Ranking) -> list[dict[str, object]]:
    setting = ranking.setting
    return [
        {
            "task": setting.task,
            "algorithm": setting.algorithm,
            "adversary": setting.adversary,
            "victims": setting.victim_kind,
            "defense": entry.defense,
            "rank": entry.rank,
            "verdict": str(entry.verdict),
            "worst": None if entry.worst is None else entry.worst.name,
            **(
                {}
                if entry.summary is None
                else {
                    column: entry.summary.mean(column) for column in ("identified", "psnr", "gain", "ssim", "st_lpips")
                }
            ),
            "notes": list(entry.notes),
        }
        for entry in ranking.entries
    ]
