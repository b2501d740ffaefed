"""One static page from a run: everything inside it, nothing fetched, no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmark.store import Manifest
from leaderboard.figures import KINDS, Picture
from leaderboard.lines import Verdict
from leaderboard.tables import Table, legend
from leaderboard.tables.model import Reach


@dataclass(frozen=True)
class PageContent:
    """What the page shows."""

    manifest: Manifest
    glance: Sequence[Table]
    leaderboards: Sequence[Table]
    trainings: Sequence[Table]
    attacks: Sequence[Table]
    pictures: Sequence[Picture]


def build_page(content: PageContent) -> str:
    """The page as HTML. Every text is escaped by the template engine, wherever it comes from."""
    environment = Environment(
        loader=PackageLoader("leaderboard.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(chip=_chip, data_uri=_data_uri, pretty=_pretty)
    templates = resources.files("leaderboard.site") / "templates"
    return environment.get_template("page.html").render(
        manifest=content.manifest,
        glance=content.glance,
        leaderboards=content.leaderboards,
        trainings=content.trainings,
        attacks=content.attacks,
        pictures={kind: [item for item in content.pictures if item.kind == kind] for kind in KINDS},
        legend=legend,
        page=Reach.PAGE,
        style=(templates / "style.css").read_text(encoding="utf-8"),
    )


def _chip(value: Any) -> str:
    """CSS class of a verdict, "" for any other value."""
    return f"chip {value.name.lower().replace('_', '-')}" if isinstance(value, Verdict) else ""


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
