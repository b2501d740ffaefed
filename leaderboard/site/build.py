"""One static page from a run: everything inside it, nothing fetched, no script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.store import Manifest
from leaderboard.figures import KINDS, Picture
from leaderboard.lines import Verdict
from leaderboard.site.environment import render_page
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
    return render_page(
        "page.html",
        chip=_chip,
        pretty_config=_pretty(content.manifest.config),
        manifest=content.manifest,
        glance=content.glance,
        leaderboards=content.leaderboards,
        trainings=content.trainings,
        attacks=content.attacks,
        pictures={kind: [item for item in content.pictures if item.kind == kind] for kind in KINDS},
        legend=legend,
        page=Reach.PAGE,
    )


def _chip(value: Any) -> str:
    """CSS class of a verdict, "" for any other value."""
    return f"chip {value.name.lower().replace('_', '-')}" if isinstance(value, Verdict) else ""


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
