"""``residmix confounders``: do predictions depend on confounders?"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import click

from residmix.cli.shared.data import frames, open_data
from residmix.cli.shared.options import ATTENDED, READING, Examples, options, seed
from residmix.cli.shared.telling import plain, print_table, told_plainly

__all__ = ["confounders"]


@click.command(
    cls=Examples,
    examples="""
    residmix confounders predictions.csv --prediction score --target y --confounders age,site
    residmix confounders predictions.csv --prediction score --target y --confounders site --fail-below 0.05
    """,
)
@click.argument("data")
@options(
    click.option("--prediction", required=True, metavar="COLUMN", help="Column of the predictions, for held-out "
                                                                       "rows."),
    click.option("--target", required=True, metavar="COLUMN", help="Column of the target."),
    click.option("--confounders", "named", required=True, metavar="COLUMNS", help="Columns of the confounders, "
                                                                                  "separated by commas."),
    click.option("--fail-below", type=click.FloatRange(0.0, 1.0), metavar="P",
                 help="Exit with status 1 if the p-value of the partial test is below this."),
    seed(),
    READING,
    ATTENDED,
)  # fmt: skip
@told_plainly
def confounders(data: str, prediction: str, target: str, named: str, fail_below: float | None, **chosen: Any) -> None:
    """Test if predictions depend on confounders given the target, and on the target given confounders.

    A small p-value of the partial test means that predictions depend on confounders; one of the full test, that
    confounders alone don't explain them. Columns of text are categories.
    """
    import pandas as pd

    from residmix.diagnostics.confounding.confounder_test import confounder_test

    settings = SimpleNamespace(**chosen)
    wanted = [name.strip() for name in named.split(",") if name.strip()]
    source = open_data(data, settings)
    columns = tuple(dict.fromkeys([prediction, target, *wanted]))
    table = pd.concat([frame.to_pandas() for frame in frames(source.table, columns)], ignore_index=True)
    found = {
        kind: confounder_test(table[prediction], table[target], table[wanted], kind, random_state=settings.seed)
        for kind in ("partial", "full")
    }
    if settings.as_json:
        click.echo(json.dumps({kind: test.to_dict() for kind, test in found.items()}, indent=1))
    else:
        rows = [
            (kind, f"{test.statistic:.3f}", f"{test.expected[1]:.3f}", f"{test.p_value:.3g}")
            for kind, test in found.items()
        ]
        print_table(f"Confounder tests of {len(table):,} rows", ("test", "R2", "expected", "p value"), rows)
    if fail_below is not None and found["partial"].p_value < fail_below:
        leans = f"{prediction} depends on {', '.join(wanted)} given {target}"
        p = found["partial"].p_value
        raise click.ClickException(plain(f"{leans}: p = {p:.3g}, which is below {fail_below:g}"))
