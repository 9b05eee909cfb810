"""Columns that are left out of the features, with reasons and remedies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import narwhals.stable.v2 as nw
import pyarrow as pa
from pyarrow import compute

from residmix.errors import DesignWarning, note, warn

if TYPE_CHECKING:
    from residmix.sources.table import Table

__all__ = ["left_out", "tell_left_out"]

LOOKED_AT = 10_000  # values of a column of text: if at least half of them are numbers, all are looked at
SHOWN = 8  # names in a message

_PLAIN = r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$"
_WHOLE = r"^\s*[-+]?[0-9]+\s*$"
_GROUPED = r"^\s*[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?\s*$"
_COMMA = r"^\s*[-+]?([0-9]{1,3}(\.[0-9]{3})*|[0-9]+),[0-9]+\s*$"

# What numbers that aren't plain have, and what `scan` reads them with.
_SEPARATED = {_GROUPED: ("separators of thousands", "thousands=','"), _COMMA: ("a decimal comma", "decimal=','")}

Reason = dict[str, Any]


def left_out(table: Table, names: Sequence[str]) -> list[Reason]:
    """Return columns that can't be features: a list of {"column", "reason", "numeric", "remedy"}.

    ``numeric`` is True if a column may have been meant as a feature; then there is a remedy.
    """
    kinds = table.column_types()
    odd = set(table.odd_numbers(names))
    found = []
    for name in names:
        kind = kinds[name]
        reason: tuple[str, str] = (str(kind), "")
        if name in odd:
            reason = ("numbers as Python objects or in sparse form", "convert to numbers (pandas: .astype(float))")
        elif kind in (nw.String, nw.Categorical, nw.Enum, nw.Object):
            reason = _text(table, name)
        elif kind == nw.Boolean:
            reason = ("truth values", "")
        elif kind in (nw.List, nw.Array):
            inner = getattr(kind, "inner", None)
            reason = ("lists", "")
            if inner is not None and (inner() if isinstance(inner, type) else inner).is_numeric():
                reason = ("lists of numbers of unequal length", "make the lists equally long")
        elif kind.is_temporal():
            reason = ("dates or times", "")
        elif kind == nw.Unknown and _is_empty(table, name):
            reason = ("no values", "")
        found.append({"column": name, "reason": reason[0], "numeric": bool(reason[1]), "remedy": reason[1]})
    return found


def tell_left_out(found: Sequence[Reason]) -> None:
    """Warn of columns that may have been meant as features, and add a note for the others."""
    alike: dict[tuple[str, str], list[str]] = {}
    for each in found:
        if each["numeric"]:
            alike.setdefault((each["reason"], each["remedy"]), []).append(each["column"])
    for (reason, remedy), names in alike.items():
        shown = ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        if len(names) == 1:
            text = (
                f"column {shown} holds {reason}, so it is left out of the features. To use it, {remedy}; else name "
                "the features with features="
            )
        else:
            text = (
                f"columns are left out of the features, because they hold {reason}: {shown}. To use them, "
                f"{remedy}; else name the features with features="
            )
        columns = [{"column": name, "reason": reason} for name in names]
        warn(text, DesignWarning, kind="left-out", columns=columns)
    rest = [{key: each[key] for key in ("column", "reason")} for each in found if not each["numeric"]]
    if rest:
        shown = ", ".join(f"{each['column']!r} ({each['reason']})" for each in rest[:SHOWN])
        more = f" and {len(rest) - SHOWN} more" if len(rest) > SHOWN else ""
        note("left-out", f"left out of the features: {shown}{more}", columns=rest)


def _text(table: Table, name: str) -> tuple[str, str]:
    """Return why a column is text instead of numbers, and a remedy if it looks like numbers."""
    start, numbers, values = 0, 0, 0
    separated: tuple[str, int, str] | None = None
    is_whole = True
    for frame in table.column_pieces(name, LOOKED_AT):
        text = _as_text(frame, name)
        if text is None:
            return "no numbers", ""
        kinds = {pattern: compute.match_substring_regex(text, pattern) for pattern in (_PLAIN, _GROUPED, _COMMA)}
        numbers += sum(int(compute.sum(kind).as_py() or 0) for kind in kinds.values())
        values += len(text) - text.null_count
        if 2 * numbers < values or not values:
            return "text", ""
        is_number = compute.or_(kinds[_PLAIN], compute.or_(kinds[_GROUPED], kinds[_COMMA]))
        other = compute.index(is_number, False).as_py()
        if other >= 0:
            return (
                f"text, although most of its values are numbers (row {start + other} has {text[other].as_py()!r})",
                "declare such values missing (scan: na_values=), or correct them",
            )
        for pattern in (_GROUPED, _COMMA):
            at = compute.index(kinds[pattern], True).as_py()
            if at >= 0 and separated is None:
                separated = pattern, start + at, text[at].as_py()
        is_whole = is_whole and compute.all(compute.match_substring_regex(text, _WHOLE)).as_py() is not False
        start += len(text)
    if separated is not None:
        pattern, row, value = separated
        kind, remedy = _SEPARATED[pattern]
        return f"numbers with {kind}, as text (row {row} has {value!r})", f"read it with {remedy}"
    if is_whole:  # labels such as "007"
        return "text", ""
    return "numbers as text", "convert to numbers (pandas: .astype(float))"


def _is_empty(table: Table, name: str) -> bool:
    """Tell whether all values of a column are missing."""
    pieces = table.column_pieces(name, LOOKED_AT)
    return all(nw.from_native(piece, eager_only=True).get_column(name).is_null().all() for piece in pieces)


def _as_text(frame: Any, name: str) -> pa.Array | None:
    """Return a column of a frame as an array of text, or None if it is something else."""
    try:
        column = nw.from_native(frame, eager_only=True).get_column(name).to_arrow()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column if pa.types.is_string(column.type) else column.cast(pa.string())
    except (pa.ArrowException, TypeError, ValueError):
        return None
