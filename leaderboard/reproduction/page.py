"""One static page of a reproduction: everything inside it, nothing fetched, no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmark.store import Manifest
from leaderboard.figures import Picture
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
    environment = Environment(
        loader=PackageLoader("leaderboard.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(chip=_no_chip, data_uri=_data_uri)
    templates = resources.files("leaderboard.site") / "templates"
    return environment.get_template("reproduction.html").render(
        content=content,
        manifest=content.manifest,
        legend=legend,
        page=Reach.PAGE,
        style=(templates / "style.css").read_text(encoding="utf-8"),
    )


def _no_chip(value: object) -> str:
    """The tables' macro marks verdicts; here are none."""
    return ""


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
