"""One static page of a reproduction: everything inside it, nothing fetched, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.store import Manifest
from leaderboard.figures import Picture
from leaderboard.site.environment import render_page
from leaderboard.tables import Table, legend
from leaderboard.tables.model import Reach


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, a paragraph, then tables and figures."""

    anchor: str
    title: str
    words: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class ReproductionPage:
    """What the page shows."""

    title: str
    lead: str
    manifest: Manifest
    sections: Sequence[Section]


def build_reproduction_page(content: ReproductionPage) -> str:
    """The page as HTML. Every text is escaped by the template engine, wherever it comes from."""
    return render_page(
        "reproduction.html",
        chip=_no_chip,
        content=content,
        manifest=content.manifest,
        legend=legend,
        page=Reach.PAGE,
    )


def _no_chip(value: object) -> str:
    """The tables' macro marks verdicts; here are none."""
    return ""
