"""Text columns that hold numbers or dates instead of labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from residmix.errors import DesignWarning, warn

__all__ = ["warn_of_text"]

# Levels up to which numbers as text may well be codes.
_FEW = 12
# Share of the distinct values that must be of a kind.
_MOST = 0.8
_WHOLE = re.compile(r"\s*\d+\s*")
_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*|\s*[+-]?\d{1,3}(,\d{3})+(\.\d+)?\s*")
_DATE = re.compile(r"\s*(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2}))([ T]\d{1,2}:\d{2}.*)?\s*")


def warn_of_text(name: str, labels: Sequence[Any], n_rows: int) -> None:
    """Warn if a column that is to be a factor holds numbers or dates as text, in many different values.

    Parameters
    ----------
    name : str
        Of the column, which isn't written as C().
    labels : sequence
        Its distinct values.
    n_rows : int
    """
    if len(labels) <= _FEW or not all(isinstance(label, str) for label in labels):
        return
    for pattern, what, remedy in (
        (_NUMBER, "numbers", "convert it to numbers (pandas.to_numeric(..., errors='coerce'))"),
        (_DATE, "dates", "convert it to a number, such as days since a date"),
    ):
        odd = [label for label in labels if not pattern.fullmatch(label)]
        if not odd and all(_WHOLE.fullmatch(label) for label in labels):
            return  # codes, as far as anybody can tell
        if len(odd) <= (1 - _MOST) * len(labels):
            others = f", {len(odd)} of them not ({', '.join(map(repr, sorted(odd)[:3]))})" if odd else ""
            warn(
                f"metadata column {name!r} is text that holds {what}, so its {len(labels)} distinct values{others} "
                f"become {len(labels)} levels. To avoid this, {remedy}; if they are labels, write C({name})",
                DesignWarning,
                kind=f"{what}-as-text",
                column=name,
                distinct=len(labels),
                odd=sorted(odd)[:20],
            )
            return
