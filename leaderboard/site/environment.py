"""What all static pages are rendered with: templates that escape every text, the style, pictures as data."""

from __future__ import annotations

import base64
import json
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmark.store import Manifest
from leaderboard.lines import Verdict
from leaderboard.tables import legend
from leaderboard.tables.model import Reach


def render_page(template: str, *, manifest: Manifest, **content: Any) -> str:
    """The page that `template` makes of a run's manifest and of `content`; the template engine escapes every text.

    Args:
        template: a file among the site's templates.
        manifest: what the results were computed with.
        content: what else the template names.
    """
    environment = Environment(
        loader=PackageLoader("leaderboard.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(chip=_chip, data_uri=_data_uri)
    return environment.get_template(template).render(
        style=(resources.files("leaderboard.site") / "templates" / "style.css").read_text(encoding="utf-8"),
        manifest=manifest,
        pretty_config=json.dumps(manifest.config, indent=2, sort_keys=True, ensure_ascii=False),
        legend=legend,
        page=Reach.PAGE,
        **content,
    )


def _chip(value: Any) -> str:
    """CSS class of a verdict, "" for any other value."""
    return f"chip {value.name.lower().replace('_', '-')}" if isinstance(value, Verdict) else ""


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
