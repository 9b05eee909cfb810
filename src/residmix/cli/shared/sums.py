"""Sums in place of rows: what a site writes for others to merge, and what of it leaves the site."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import click

__all__ = ["check_sums", "fit_sums", "leaving"]

# What belongs to the rows of all sites together, so that one site's say nothing of it.
_OF_ALL = ("RareLevelWarning", "ManyColumnsWarning", "CollinearityWarning")


def check_sums(chosen: SimpleNamespace) -> None:
    """Raise unless options ask for a model of sums that is written, and nothing beside it."""
    if not chosen.moments_only:
        return
    beside = [f"--{name}" for name in ("residuals", "labels", "report") if getattr(chosen, name)]
    if chosen.output is None or beside:
        told = f"{' and '.join(beside)} would need all sites' fit" if beside else "nothing would be written"
        raise click.UsageError(f"--moments-only writes sums for residmix merge: give -o; {told}")
    if chosen.components:
        raise click.UsageError("--moments-only is of effects, which add up; a mixture doesn't: leave out -k")


def fit_sums(model: Any, table: Any, chosen: SimpleNamespace) -> None:
    """Fit, refuse cells that are too small, and keep no row."""
    from residmix import errors
    from residmix.removal.settings import refuse_moments_alone

    model.set_params(check_leakage=False)  # it would look at rows
    with ExitStack() as quiet:
        for name in _OF_ALL:
            quiet.enter_context(errors.unnoted(getattr(errors, name)))
        model.fit(table)
    refuse_moments_alone(model)
    cell = model.smallest_cell()
    if cell.rows < chosen.min_count:
        raise click.ClickException(
            f"{cell.rows} row{'' if cell.rows == 1 else 's'} of {cell.name}: sums of so few tell of single rows, and "
            f"--min-count is {chosen.min_count}; merge levels, or lower --min-count if that is agreed"
        )


def leaving(model: Any) -> list[str]:
    """Return lines that say what of the rows a model file holds; none for models that hold no moments."""
    if not hasattr(model, "what_leaves"):
        return []
    lines = [f"{row.what}: {row.numbers:,} numbers" for row in model.what_leaves().itertuples()]
    cell = model.smallest_cell()
    return [*lines, f"the smallest cell has {cell.rows} rows: {cell.name}"]
