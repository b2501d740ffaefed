"""What all static pages are rendered with: templates that escape every text, the style, pictures as data."""

from __future__ import annotations

import base64
from collections.abc import Callable
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(template: str, *, chip: Callable[[Any], str], **content: Any) -> str:
    """The page that `template` makes of `content`; every text is escaped by the template engine.

    Args:
        template: a file among the site's templates.
        chip: the CSS class that marks a value in tables, "" for none.
        content: what the template names.
    """
    environment = Environment(
        loader=PackageLoader("leaderboard.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(chip=chip, data_uri=_data_uri)
    style = (resources.files("leaderboard.site") / "templates" / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, **content)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
