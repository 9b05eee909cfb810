"""The roles of columns: features, metadata, and columns that are left out, which are reported."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import click

from residmix.cli.shared.data import Data, frames
from residmix.cli.shared.telling import as_options

__all__ = ["Columns", "metadata_columns", "named", "plan_columns", "require_features"]

# Names that speak of an identifier, as a word of their own at the end or before "number": "id", "subject_id",
# "ParticipantID", "patient_no", but not "width" or "patient_weight".
_IDENTIFIER = re.compile(
    r"(?:^|[^a-z])(?:ids?|subj|subjects?|participants?|patients?|persons?|respondents?|barcodes?|uuid|guid)"
    r"(?:[^a-z]*(?:no|nr|num|number|code)?[^a-z]*)$|(?<=[a-z])I[Dd]$",
)

LOOKED_AT = 2000  # columns that are searched for two values


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
        """All columns that aren't features."""
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
    from residmix.design.formula.parser import formula_columns

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
    there = set(known)
    found: dict[str, None] = {}
    for name in next(csv.reader([text], skipinitialspace=True), []):
        name = name.strip()
        if name in there or not any(sign in name for sign in "*?["):
            if name not in there:
                require_columns((name,), known, option)
            found[name] = None
            continue
        matches = [other for other in known if fnmatchcase(other, name)]
        if not matches:
            raise click.ClickException(f"no column matches {name!r} of {option}; there are: {', '.join(known[:12])}")
        found.update(dict.fromkeys(matches))
    return tuple(found)


def plan_columns(data: Data, options: Any) -> Columns:
    """Find the role of every column, and report it in notes."""
    from residmix.errors import note
    from residmix.sources.frames import require_columns

    known = data.table.columns
    metadata, preserved = metadata_columns(options.formula), metadata_columns(options.preserve)
    weighing = metadata_columns(getattr(options, "gating", None))
    for option, names in (("--formula", metadata), ("--preserve", preserved), ("--gating", weighing)):
        require_columns(names, known, f"{option} (columns of {data.name})")
    preserved = tuple(dict.fromkeys([*preserved, *(name for name in weighing if name not in metadata)]))
    if options.compare is not None:
        require_columns((options.compare,), known, data.name)
    taken = {*metadata, *preserved, options.compare}
    asked = named(options.features, known, "--features")
    excluded = dict.fromkeys(named(options.exclude, known, "--exclude") or (), "--exclude")
    if asked is not None:
        features = tuple(name for name in asked if name not in excluded)
        for name in features:
            if name in taken and any(sign in str(options.features) for sign in "*?["):
                continue
            if name in (*metadata, *preserved):
                raise click.ClickException(
                    f"column {name!r} can't be both a feature and metadata; use it as one of them"
                )
        features = tuple(name for name in features if name not in (*metadata, *preserved))
        columns = Columns(features, metadata, preserved, excluded, options.compare)
    else:
        columns = _found(data, metadata, preserved, options.compare, set(excluded))
    if not columns.features:
        left = f"; left out: {columns.told().partition('left out: ')[2]}" if columns.left_out else ""
        raise click.ClickException(f"no numeric column is left for the features; name them with --features{left}")
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
    numbers = set(table.numeric_columns)
    numeric = [name for name in rest if name in numbers and name not in excluded]
    left |= dict.fromkeys(row_labels(numeric), "row numbers")
    left |= dict.fromkeys(_identifiers(data, [name for name in numeric if name not in left]), "an identifier")
    left |= _reasons(data, [name for name in rest if name not in numbers and name not in excluded])
    return Columns(tuple(n for n in numeric if n not in left), metadata, preserved, left, compare)


def speaks_of_identifier(name: str) -> bool:
    """Tell whether a column's name suggests identifiers.

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


def require_features(data: Data, features: Sequence[str]) -> None:
    """Raise if a feature is missing, or is text that looks like numbers, with a remedy."""
    from residmix.sources.frames import require_columns

    table = data.table
    if table.named:
        require_columns(features, table.columns, data.name)
        numbers = set(table.numeric_columns)
        _reasons(data, [name for name in features if name not in numbers], apply=True)


def _reasons(data: Data, names: list[str], *, apply: bool = False) -> dict[str, str]:
    """Return why columns that aren't numeric are no features.

    Raises
    ------
    ClickException
        If one holds numbers all the same, written as text or as lists, with what to do about it; with `apply`, where
        a model needs them, also if it doesn't.
    """
    from residmix.sources.columns.left_out import left_out

    told = {}
    for found in left_out(data.table, names):
        name, reason = found["column"], found["reason"]
        if found["numeric"] and not apply and speaks_of_identifier(name):
            reason = "an identifier"
        elif apply and not found["numeric"]:
            raise click.ClickException(f"column {name!r} is a feature of the model, but holds {reason} in DATA")
        elif found["numeric"]:
            value = re.search(r"row \d+ has '(.*)'", reason)
            remedy = found["remedy"]
            if "na_values=" in remedy and value:
                remedy = f"if that means a missing value, add --na-values {shlex.quote(value[1])}"
            raise click.ClickException(
                as_options(
                    f"column {name!r} holds {reason}; {remedy}, or leave the column out: --exclude {quoted(name)}"
                )
            )
        told[name] = reason
    return told


def quoted(name: str) -> str:
    """Return a column's name as one types it into an option.

    Examples
    --------
    >>> print(quoted("age"), quoted("a, b"))
    age '"a, b"'
    """
    inner = '"' + name.replace('"', '""') + '"' if any(sign in name for sign in ',"') else name
    return shlex.quote(inner)


def _note_two_valued(data: Data, features: Iterable[str]) -> None:
    """Note features with only two values, such as a sex of 0 and 1."""
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
            f"features with only two values: {told}. If they are metadata, use them in --formula or --preserve, or "
            "leave them out with --exclude",
            features=found,
        )
