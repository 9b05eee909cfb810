"""Summary dict -> one HTML page: no script, nothing fetched, every user's string escaped."""

from __future__ import annotations

import json
import os
from typing import Any

from residmix.atomic import atomic_path

__all__ = ["render", "write_report"]


def render(summary: dict[str, Any], pictures: dict[str, str]) -> str:
    """Return the page for `summary`; `pictures` maps names to SVG text that this package drew itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("residmix.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {name: Markup(svg) for name, svg in pictures.items()}  # from matplotlib only, never from a user
    page = environment.get_template("report.html")
    return page.render(s=summary, pictures=drawn, twin=json.dumps(summary, indent=1))


def write_report(page: str, path: str | os.PathLike[str]) -> None:
    """Write `page` to `path` (UTF-8), under a temporary name first."""
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
