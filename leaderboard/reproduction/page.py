"""One static page of a reproduction: everything inside it, nothing fetched, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.store import Manifest
from leaderboard.figures import Picture
from leaderboard.site.environment import render_page
from leaderboard.tables import Table


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, a paragraph, then tables and figures, and long tables folded away."""

    anchor: str
    title: str
    words: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: Sequence[Table] = ()

    @property
    def all_tables(self) -> list[Table]:
        """The tables, also those folded away."""
        return [*self.tables, *self.folded]


@dataclass(frozen=True)
class ReproductionPage:
    """What the page shows."""

    title: str
    lead: str
    manifest: Manifest
    sections: Sequence[Section]

    @property
    def tables(self) -> list[Table]:
        """The tables of all sections in reading order, without those folded away."""
        return [table for section in self.sections for table in section.tables]

    @property
    def all_tables(self) -> list[Table]:
        """The same with those folded away."""
        return [table for section in self.sections for table in section.all_tables]

    @property
    def pictures(self) -> list[Picture]:
        """The figures of all sections, in reading order."""
        return [picture for section in self.sections for picture in section.pictures]


def build_reproduction_page(content: ReproductionPage) -> str:
    """The page as HTML. Every text is escaped by the template engine, wherever it comes from."""
    return render_page("reproduction.html", manifest=content.manifest, content=content)
