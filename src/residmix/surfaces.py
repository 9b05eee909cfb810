"""What fitted estimators show of themselves. Pictures and pages stand above them, and are looked up by name."""

from __future__ import annotations

import importlib
import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Shown", "Summary", "SummaryOfMixture"]


class Summary(str):
    """A page of text, which a notebook shows as it is.

    Examples
    --------
    >>> Summary("two\\nlines")
    two
    lines
    """

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f'<pre style="line-height: 1.3">{escape(self)}</pre>'


def _surface(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"residmix.{module}"), name)


class Shown:
    """Reports and pictures of an estimator."""

    def report(
        self, path: str | os.PathLike[str], X: Any = None, *, metadata: Any = None, reference: str | None = None
    ) -> Path:
        """Write a report to one file that opens offline; return its path.

        Parameters
        ----------
        path : path
            An HTML page; or the same as JSON, if it ends in ``.json``.
        X, metadata : optional
            Rows to describe the model on, as for `fit`. Without them the report holds what the model itself knows.
        reference : str, optional
            A column to compare the components with.
        """
        return _surface("report.build", "report")(self, path, X, metadata=metadata, reference=reference)

    def plot(self, X: Any = None, *, metadata: Any = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the components (:func:`residmix.plot_components`), or without any, the levels of the metadata.

        The latter is :func:`residmix.plot_levels`, which needs rows. `options` are those of either.
        """
        if hasattr(self, "means_"):
            return _surface("plots.components", "plot_components")(self, X, metadata=metadata, ax=ax, **options)
        if X is None:
            raise ValueError("the picture shows rows before and after: pass X, the rows of the fit")
        return _surface("plots.levels", "plot_levels")(self, X, metadata=metadata, ax=ax, **options)


class SummaryOfMixture(Shown):
    """The same of a mixture, with its summary."""

    def summary(self) -> Summary:
        """Return what was found as text: components with weights and means, and how the fit ended."""
        return _surface("report.text", "mixture_text")(self)
