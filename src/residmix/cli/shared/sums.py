"""Sums instead of rows, which a site writes for others to merge."""

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
        told = f"leave out {' and '.join(beside)}, which would need the merged fit" if beside else "set -o"
        raise click.UsageError(f"--moments-only only writes sums to -o, for residmix merge; {told}")
    if chosen.components:
        raise click.UsageError("--moments-only doesn't work with a mixture; leave -k out")


def fit_sums(model: Any, table: Any, chosen: SimpleNamespace) -> None:
    """Fit, raise if a cell is too small, and keep no rows."""
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
            f"{cell.rows} row{'' if cell.rows == 1 else 's'} of {cell.name}: sums of so few can reveal single rows, "
            f"and --min-count is {chosen.min_count}; merge levels, or lower --min-count if that is allowed"
        )


def leaving(model: Any) -> list[str]:
    """Return lines that list the sums of the data in a model file; none for models without moments."""
    if not hasattr(model, "what_leaves"):
        return []
    lines = [f"{row.what}: {row.numbers:,} numbers" for row in model.what_leaves().itertuples()]
    cell = model.smallest_cell()
    return [*lines, f"the smallest cell has {cell.rows} rows: {cell.name}"]
