"""The tables of a run: what stands in them, and how they are written for the terminal, a page, a paper or a program."""

from __future__ import annotations

from leaderboard.tables.contents import attack_tables, glance_tables, leaderboard_tables, training_tables
from leaderboard.tables.model import Column, Table, legend
from leaderboard.tables.render import TerminalTables, csv_text, latex_text, markdown_text

__all__ = [
    "Column",
    "Table",
    "TerminalTables",
    "attack_tables",
    "csv_text",
    "glance_tables",
    "latex_text",
    "leaderboard_tables",
    "legend",
    "markdown_text",
    "training_tables",
]
