"""Which columns are features, and what becomes of the others: nothing is left out without a word."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import click

from residmix.cli.shared.data import Data, frames

__all__ = ["Columns", "metadata_columns", "named", "plan_columns"]

# Names that speak of an identifier, as a word of their own at the end or before "number": "id", "subject_id",
# "ParticipantID", "patient_no", but not "width" or "patient_weight".
_IDENTIFIER = re.compile(
    r"(?:^|[^a-z])(?:ids?|subj|subjects?|participants?|patients?|persons?|respondents?|barcodes?|uuid|guid)"
    r"(?:[^a-z]*(?:no|nr|num|number|code)?[^a-z]*)$|(?<=[a-z])I[Dd]$",
)
_NUMBER = re.compile(r"[<>~≤≥]?\s*[-+]?(?:\d[\d .,'\u00a0\u202f]*|[.,]\d+)(?:[eE][-+]?\d+)?\s*%?")
LOOKED_AT = 2000  # values of a column of text


@dataclass(frozen=True)
class Columns:
    """The roles of the columns of a table.

    Attributes
    ----------
    features, metadata, preserved : tuple of str
    left_out : dict of str to str
        Name -> reason, of columns that aren't used.
    compare : str or None
    """

    features: tuple[str, ...]
    metadata: tuple[str, ...]
    preserved: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    compare: str | None = None

    @property
    def used(self) -> list[str]:
        return list(dict.fromkeys([*self.features, *self.beside]))

    @property
    def beside(self) -> list[str]:
        """All that's no feature."""
        compare = [self.compare] if self.compare else []
        return list(dict.fromkeys([*self.metadata, *self.preserved, *compare]))

    def told(self) -> str:
        """Return "40 features; left out: id (an identifier), name (text)"."""
        left = [f"{name or 'unnamed'} ({reason})" for name, reason in self.left_out.items()]
        more = f" and {len(left) - 12} more" if len(left) > 12 else ""
        found = f"{len(self.features):,} feature{'' if len(self.features) == 1 else 's'}"
        return f"{found}; left out: {', '.join(left[:12])}{more}" if left else found


def metadata_columns(formula: str | None) -> tuple[str, ...]:
    """Return the columns that a formula names, if there is one."""
    from residmix.design.formula import formula_columns

    return () if formula is None else formula_columns(formula)


def named(text: str | None, known: Sequence[str], option: str) -> tuple[str, ...] | None:
    """Return the columns that an option names: names or patterns, separated by commas, in quotes if they hold one.

    Raises
    ------
    ValueError
        For a name that isn't there, or a pattern that nothing matches.
    """
    from residmix.sources.frames import require_columns

    if text is None:
        return None
    if text in known:
        return (text,)
    found: dict[str, None] = {}
    for name in next(csv.reader([text], skipinitialspace=True), []):
        name = name.strip()
        if name in known or not any(sign in name for sign in "*?["):
            require_columns((name,), known, option)
            found[name] = None
            continue
        matches = [other for other in known if fnmatchcase(other, name)]
        if not matches:
            raise click.ClickException(f"no column matches {name!r} of {option}; there are: {', '.join(known[:12])}")
        found.update(dict.fromkeys(matches))
    return tuple(found)


def plan_columns(data: Data, options: Any) -> Columns:
    """Settle what every column is, and tell it as notes."""
    from residmix.errors import note
    from residmix.sources.frames import require_columns

    known = data.table.columns
    metadata, preserved = metadata_columns(options.formula), metadata_columns(options.preserve)
    for option, names in (("--formula", metadata), ("--preserve", preserved)):
        require_columns(names, known, f"{option} (columns of {data.name})")
    if options.compare is not None:
        require_columns((options.compare,), known, data.name)
    taken = {*metadata, *preserved, options.compare}
    asked = named(options.features, known, "--features")
    excluded = named(options.exclude, known, "--exclude") or ()
    if asked is not None:
        features = tuple(name for name in asked if name not in excluded)
        for name in features:
            if name in taken and any(sign in str(options.features) for sign in "*?["):
                continue
            if name in (*metadata, *preserved):
                raise click.ClickException(f"column {name!r} can't be a feature and metadata at once")
        features = tuple(name for name in features if name not in (*metadata, *preserved))
        columns = Columns(features, metadata, preserved, dict.fromkeys(excluded, "--exclude"), options.compare)
    else:
        columns = _found(data, metadata, preserved, options.compare, set(excluded))
    if not columns.features:
        left = f"; left out: {columns.told().partition('left out: ')[2]}" if columns.left_out else ""
        raise click.ClickException(f"no numeric column is left to be a feature; name them with --features{left}")
    if columns.left_out:
        note("left-out-columns", columns.told(), features=len(columns.features), left_out=columns.left_out)
    if asked is None and data.measured is None:
        _note_two_valued(data, columns.features)
    return columns


def _found(
    data: Data, metadata: tuple[str, ...], preserved: tuple[str, ...], compare: str | None, excluded: set[str]
) -> Columns:
    """Return the roles that columns have if no features are named."""
    from residmix.sources.frames import row_labels

    table = data.table
    taken = {*metadata, *preserved, *([compare] if compare else [])}
    rest = [name for name in table.columns if name not in taken]
    left = dict.fromkeys((name for name in rest if name in excluded), "--exclude")
    if data.measured is not None:
        measured = set(data.measured)
        left |= {name: "in obs" for name in rest if name not in measured and name not in excluded}
        features = [name for name in rest if name in measured and name not in excluded]
        return Columns(tuple(features), metadata, preserved, left, compare)
    numeric = [name for name in table.numeric_columns if name in rest and name not in excluded]
    left |= dict.fromkeys(row_labels(numeric), "row numbers")
    left |= dict.fromkeys(_identifiers(data, [name for name in numeric if name not in left]), "an identifier")
    others = [name for name in rest if name not in numeric and name not in excluded]
    left |= {name: _reason(data, name) for name in others}
    return Columns(tuple(n for n in numeric if n not in left), metadata, preserved, left, compare)


def speaks_of_identifier(name: str) -> bool:
    """Tell whether a column's name says that it holds identifiers.

    Examples
    --------
    >>> [name for name in ("id", "subject_id", "ParticipantID", "patient_no", "width") if speaks_of_identifier(name)]
    ['id', 'subject_id', 'ParticipantID', 'patient_no']
    """
    return bool(_IDENTIFIER.search(name) or _IDENTIFIER.search(name.lower()))


def _identifiers(data: Data, numeric: list[str]) -> list[str]:
    """Return numeric columns whose values are all distinct whole numbers and whose name speaks of an identifier."""
    import numpy as np

    found = [name for name in numeric if speaks_of_identifier(name)]
    if not found:
        return []
    held: dict[str, list[Any]] = {name: [] for name in found}
    for frame in frames(data.table, found):
        for name in found:
            held[name].append(frame[name].to_numpy())
    values = {name: np.concatenate([np.asarray(part, dtype=float) for part in parts]) for name, parts in held.items()}
    return [
        name
        for name, column in values.items()
        if np.isfinite(column).all() and (column == np.floor(column)).all() and len(np.unique(column)) == len(column)
    ]


def _reason(data: Data, name: str) -> str:
    """Return why a column that isn't numeric is no feature.

    Raises
    ------
    ClickException
        If it holds numbers all the same: written as text, or as lists.
    """
    import narwhals.stable.v2 as nw

    dtype = _schema(data)[name]
    if dtype == nw.Boolean:
        return "truth values"
    if dtype.is_temporal():
        return "dates"
    if str(dtype).startswith(("List", "Array")):
        raise click.ClickException(
            f"column {name!r} holds lists ({dtype}); write each of their numbers into a column of its own, or leave "
            f"the column out: --exclude {quoted(name)}"
        )
    seen = bad = 0
    example, row = None, 0
    for value in _values(data, name):
        row += 1
        if value is None or value != value or str(value).strip() == "":
            continue
        seen += 1
        if not _NUMBER.fullmatch(str(value).strip()):
            bad += 1
        if example is None and not _is_float(value):
            example = (row, str(value))
        if seen >= LOOKED_AT and (example is not None or bad):
            break
    if seen == 0:
        return "no values"
    if bad < seen / 2 and not speaks_of_identifier(name):
        raise click.ClickException(_looks_numeric(name, example))
    return "text" if dtype in (nw.String, nw.Categorical, nw.Enum, nw.Object) else str(dtype).lower()


def _looks_numeric(name: str, example: tuple[int, str] | None) -> str:
    """Return the error for numbers that are written as text, with what helps."""
    where = f" such as {example[1]!r} in row {example[0]}" if example else ""
    text = example[1] if example else ""
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        remedy = "write the numbers without thousands separators"
    elif re.fullmatch(r"[-+]?\d+,\d+", text):
        remedy = "write the numbers with a decimal point"
    else:
        remedy = "leave such cells empty, so that they are missing values"
    return (
        f"column {name!r} looks numeric but holds text{where}; {remedy}, or leave the column out: "
        f"--exclude {quoted(name)}"
    )


def quoted(name: str) -> str:
    """Return a column's name as one types it into an option.

    Examples
    --------
    >>> print(quoted("age"), quoted("a, b"))
    age '"a, b"'
    """
    import shlex

    inner = '"' + name.replace('"', '""') + '"' if any(sign in name for sign in ',"') else name
    return shlex.quote(inner)


def _is_float(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _schema(data: Data) -> Any:
    return next(frames(data.table, data.table.columns)).schema


def _values(data: Data, name: str) -> Iterator[Any]:
    for frame in frames(data.table, [name]):
        yield from frame[name].to_list()


def _note_two_valued(data: Data, features: Iterable[str]) -> None:
    """Name features that hold two values only, such as a sex of 0 and 1."""
    import numpy as np

    from residmix.cli.shared.data import sampled_rows
    from residmix.errors import note

    features = list(features)
    if len(features) > LOOKED_AT:
        return
    shown, _ = sampled_rows(data.table, features)
    found = {}
    for name in features:
        values = np.unique(shown[name].dropna().to_numpy(dtype=float))
        if len(values) == 2 and len(shown) > 4:
            found[name] = [float(value) for value in values]
    if found:
        told = ", ".join(f"{name} ({low:g} and {high:g})" for name, (low, high) in list(found.items())[:8])
        note(
            "two-valued-features",
            f"features with two values only: {told}. If they are metadata, name them in --formula or --preserve, or "
            "leave them out with --exclude",
            features=found,
        )
