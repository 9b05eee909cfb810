"""Summaries, reports and plots of fitted estimators. Reports and plots are imported when they are used."""

from __future__ import annotations

import importlib
import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
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
            Rows to evaluate the model on, as for `fit`. Without them the report has only what the model stores.
        reference : str, optional
            A column to compare the components with.
        """
        written: Path = _surface("report.build", "report")(self, path, X, metadata=metadata, reference=reference)
        return written

    def plot(self, X: Any = None, *, metadata: Any = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the components (:func:`residmix.plot_components`), or without any, the levels of the metadata.

        The latter is :func:`residmix.plot_levels`, which needs rows. `options` go to that function.
        """
        drawn: Axes
        if hasattr(self, "means_"):
            drawn = _surface("plots.components", "plot_components")(self, X, metadata=metadata, ax=ax, **options)
            return drawn
        if X is None:
            raise ValueError("plot needs X, the rows of the fit, to show them before and after")
        drawn = _surface("plots.levels", "plot_levels")(self, X, metadata=metadata, ax=ax, **options)
        return drawn


class SummaryOfMixture(Shown):
    """Reports, pictures and the summary of a mixture."""

    def summary(self) -> Summary:
        """Return a text with the components, their weights and means, and how the fit ended."""
        text: Summary = _surface("report.text", "mixture_text")(self)
        return text

    def tidy(self) -> pd.DataFrame:
        """Return the parameters as a data frame with a row for each number.

        Returns
        -------
        DataFrame
            Columns parameter ("weight", "mean", "covariance"; "noise_weight" and "dof" where there are such),
            component, feature, feature_2 (of a covariance; each pair once), estimate and std_error
            (`standard_errors_`; NaN where these need the rows). A covariance that components share has no component.

        Examples
        --------
        >>> import numpy as np, residmix as rm
        >>> X = np.random.default_rng(0).normal(size=(300, 1)) + np.repeat([0.0, 8.0], 150)[:, None]
        >>> found = rm.GaussianMixture(2, random_state=0).fit(X).tidy()
        >>> found[["parameter", "component", "estimate", "std_error"]].round(2)
            parameter  component  estimate  std_error
        0      weight          0      0.50       0.03
        1      weight          1      0.50       0.03
        2        mean          0      7.87       0.09
        3        mean          1      0.06       0.08
        4  covariance          0      1.13       0.13
        5  covariance          1      0.92       0.11
        """
        return _surface("report.text", "mixture_table")(self)
