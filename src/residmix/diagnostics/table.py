"""The table of measurements that `residmix.association` returns."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Association"]

COLUMNS = (
    "stage", "measure", "metadata", "feature", "n",
    "in_sample", "in_sample_low", "in_sample_high", "in_sample_p",
    "held_out", "held_out_chance", "held_out_chance_low", "held_out_chance_high", "held_out_p",
)  # fmt: skip


class Association:
    """A plain table of measurements: one row each, columns by name.

    Attributes
    ----------
    columns : dict of list
        stage ("before", "after"); measure; metadata (a term of the formula or a column); feature; n (rows); then the
        in-sample value with its confidence interval and p-value, and the held-out value with its chance level (mean,
        2.5 and 97.5 % points under permutation) and p-value. NaN where a measure has no such value.
    """

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["stage"])

    def __getitem__(self, column: str) -> list[Any]:
        return self.columns[column]

    def where(self, **wanted: Any) -> Association:
        """Return the rows in which columns have the given values: ``table.where(stage="after", measure="r2")``."""
        keep = [row for row in range(len(self)) if all(self.columns[key][row] == wanted[key] for key in wanted)]
        return Association({name: [values[row] for row in keep] for name, values in self.columns.items()})

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the columns as plain lists."""
        return {name: list(values) for name, values in self.columns.items()}

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas data frame."""
        import pandas as pd

        return pd.DataFrame(self.columns)

    def __repr__(self) -> str:
        return f"Association of {len(self)} rows; print() shows it, .to_frame() makes a data frame"

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it: columns that hold something, the first 200 rows."""
        names = [name for name in COLUMNS if not _empty(self[name])]
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
        shown = min(len(self), 200)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(self[name][row]))}</td>" for name in names) + "</tr>"
            for row in range(shown)
        )
        more = f"<p>{len(self) - shown} more rows; .to_frame() has them all</p>" if shown < len(self) else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def __str__(self) -> str:
        lines = []
        for measure in dict.fromkeys(self["measure"]):
            part = self.where(measure=measure)
            names = [name for name in COLUMNS if name != "measure" and not _empty(part[name])]
            shown = [names] + [[_shown(part[name][row]) for name in names] for row in range(min(len(part), 40))]
            widths = [max(len(line[k]) for line in shown) for k in range(len(names))]
            lines += [
                "",
                measure,
                *("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in shown),
            ]
            if len(part) > 40:
                lines.append(f"... {len(part) - 40} more rows; .to_frame() has them all")
        return "\n".join(line.rstrip() for line in lines[1:])


def _empty(values: Sequence[Any]) -> bool:
    return all(isinstance(value, float) and value != value for value in values)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}"
    return str(value)
