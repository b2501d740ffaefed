"""One static page from a run: everything inside it, nothing fetched, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.store import Manifest
from leaderboard.figures import KINDS, Picture
from leaderboard.site.environment import render_page
from leaderboard.tables import Table


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
        manifest=content.manifest,
        glance=content.glance,
        leaderboards=content.leaderboards,
        trainings=content.trainings,
        attacks=content.attacks,
        pictures={kind: [item for item in content.pictures if item.kind == kind] for kind in KINDS},
    )
