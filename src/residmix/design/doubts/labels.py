"""Text columns that hold numbers or dates instead of labels, and labels that may not be what they seem."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from residmix.errors import DesignWarning, warn

__all__ = ["warn_of_labels", "warn_of_text"]

# Levels up to which numbers as text may well be codes.
_FEW = 12
# Share of the distinct values that must be of a kind.
_MOST = 0.8
# Levels that are compared with each other, and pairs and levels that a message names.
_COMPARED, _SHOWN = 10_000, 5
# What other programs write for a value that isn't there, without spaces and in lower case.
_NONE = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null"})
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


def warn_of_labels(name: str, counts: Mapping[Any, int]) -> None:
    """Warn of levels that differ only in case, spaces or how letters are encoded, and of those that say "missing".

    Parameters
    ----------
    name : str
        Of the column.
    counts : mapping
        How many rows each of its levels has.
    """
    labels = sorted(label for label in counts if isinstance(label, str))[:_COMPARED]
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(_folded(label), []).append(label)
    absent = sorted(label for folded in _NONE for label in alike.get(folded, ()))
    several = [same for folded, same in alike.items() if len(same) > 1 and folded not in _NONE]
    if several:
        shown = "; ".join(" and ".join(map(repr, same)) for same in several[:_SHOWN])
        warn(
            f"levels of metadata column {name!r} differ only in case or spaces, and each has an effect of its own: "
            f"{shown}{' ...' if len(several) > _SHOWN else ''}. If they mean the same, write them alike",
            DesignWarning,
            kind="levels-alike",
            column=name,
            levels=several[:20],
        )
    if absent:
        shown = ", ".join(f"{label!r} ({counts[label]} rows)" for label in absent[:_SHOWN])
        warn(
            f"text of metadata column {name!r} looks like missing values, and counts as a level: {shown}. Replace it "
            "by NaN (see missing=), or rename it if it is a label",
            DesignWarning,
            kind="missing-as-text",
            column=name,
            levels=absent,
        )


def _folded(label: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", label).split()).casefold()
