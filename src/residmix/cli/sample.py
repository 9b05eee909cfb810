"""``residmix sample``: draw rows from a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from residmix.cli.shared.data import frames, open_data
from residmix.cli.shared.estimators import load_model
from residmix.cli.shared.options import ATTENDED, COLUMN_FILES, READING, Examples, options, seed, written
from residmix.cli.shared.output import check_columns_file, check_targets, write_columns
from residmix.cli.shared.telling import say, told_plainly

__all__ = ["sample"]


@click.command(
    cls=Examples,
    examples="""
    residmix sample model.safetensors profiles.csv -o drawn.parquet
    residmix sample model.safetensors -n 1000 -o drawn.csv
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@options(
    written("output", "-o", "--output", required=True, help=COLUMN_FILES),
    click.option("--rows", "-n", type=click.IntRange(min=1), help="Number of rows, for a model without metadata."),
    seed(),
    READING,
    ATTENDED,
)  # fmt: skip
@told_plainly
def sample(model: Path, data: str | None, output: Path, rows: int | None, seed: int, **chosen: Any) -> None:
    """Draw features and components from MODEL: one row for each row of metadata in DATA."""
    options = SimpleNamespace(**chosen)
    check_columns_file(output, "--output")
    check_targets({"--output": output}, force=options.force)
    fitted = load_model(model)
    if not hasattr(fitted, "sample"):
        raise click.ClickException(
            f"{str(model)!r} is a {type(fitted).__name__}, which has no density; fit one with -k"
        )
    fitted.random_state = seed
    linear = getattr(fitted, "residualizer_", None)
    needed = () if linear is None else tuple(getattr(fitted, "_design", linear.design_).columns)
    if needed and data is None:
        raise click.UsageError(f"the model was fitted with metadata; pass DATA with the columns {', '.join(needed)}")
    if needed and rows is not None:
        raise click.UsageError("-n doesn't work with DATA, since one row is drawn for each row of DATA; leave -n out")
    if needed:
        source = open_data(str(data), options)
        check_targets({"--output": output}, reads=source.paths, force=options.force)
        drawn, labels = fitted.sample(metadata=_whole(source, needed))
    else:
        drawn, labels = fitted.sample(rows or 1)
    names = [str(name) for name in (fitted.feature_names_in_ if linear is None else linear.features_)]
    write_columns(output, lambda path: _write(path, names, drawn, labels))
    say(options.quiet, f"{len(drawn):,} rows: {output}")


def _whole(source: Any, columns: tuple[str, ...]) -> Any:
    import pandas as pd

    return pd.concat([frame.to_pandas() for frame in frames(source.table, columns)], ignore_index=True)


def _write(path: Path, names: list[str], drawn: Any, labels: Any) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    from residmix.atomic import atomic_path

    columns = {name: drawn[:, j] for j, name in enumerate(names)} | {"component": labels}
    with atomic_path(path) as temporary:
        write_table(pa.table(columns), temporary)
