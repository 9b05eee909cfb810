"""Summary dict to one HTML page: no scripts, no external resources, all user strings escaped."""

from __future__ import annotations

import json
import math
from typing import Any

from residmix.plots.style import visible
from residmix.report.pictures import Picture

__all__ = ["render"]

TWIN_BYTES = 200_000  # of the JSON twin inside the page; a larger one is a file of its own


def render(summary: dict[str, Any], pictures: dict[str, list[Picture]]) -> str:
    """Return the page for `summary`; `pictures` maps sections to pictures that this package drew itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("residmix.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "percent": _percent, "count": _count}
    drawn = {
        # from matplotlib only, never from a user
        section: [{"svg": Markup(own.svg), "caption": own.caption} for own in made]
        for section, made in pictures.items()
    }
    twin = json.dumps(summary, indent=1)
    page = environment.get_template("report.html").render(
        s=summary, pictures=drawn, twin=twin if len(twin) <= TWIN_BYTES else None
    )
    return visible(page.lstrip(), kept="\n\t")


def _figure(value: Any, digits: int = 4) -> str:
    """Return a number with so many significant digits; nothing for what isn't known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.{digits}g}"


def _percent(value: Any) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _count(value: Any) -> str:
    return "" if value is None else f"{value:,}"
