"""Build a report from a fitted model, and rows if there are any, as HTML or JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from residmix.atomic import atomic_path
from residmix.report.gather import Evidence, gather
from residmix.report.html import render
from residmix.report.pictures import pictures
from residmix.report.summarise import summarise

__all__ = ["page", "report", "write"]


def report(model: Any, path: str | os.PathLike[str], X: Any = None, *, metadata: Any = None, **options: Any) -> Path:
    """Write a report on a fitted model to one file: an HTML page, or JSON if `path` ends in ``.json``.

    Parameters
    ----------
    model : Residualizer, ResidualMixture, GaussianMixture or Eraser
    path : path
        Written under a temporary name first.
    X, metadata
        Rows to evaluate the model on, as for its `fit`.
    **options
        Of :func:`residmix.report.gather.gather`.
    """
    found = gather(model, X, metadata=metadata, **options)
    write(found, summarise(found), path)
    return Path(path)


def write(found: Evidence, summary: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write what was gathered and summarised."""
    if os.fspath(path).endswith(".json"):
        text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    else:
        text = page(found, summary)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(found: Evidence, summary: dict[str, Any]) -> str:
    """Return the HTML page."""
    return render(summary, pictures(found, summary))
