"""``residmix transform``: residuals of new rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import click

from residmix.cli.shared.columns import require_features
from residmix.cli.shared.data import is_h5ad, open_data
from residmix.cli.shared.estimators import load_model, remover
from residmix.cli.shared.options import ATTENDED, COLUMN_FILES, READING, Examples, options, written
from residmix.cli.shared.output import check_columns_file, check_targets, write_columns
from residmix.cli.shared.stages import converting, reading, under_way, writing
from residmix.cli.shared.telling import say, told_plainly

__all__ = ["transform"]


@click.command(
    cls=Examples,
    examples="""
    residmix transform model.safetensors new.parquet -o clean.parquet
    residmix transform model.safetensors new.csv -o - | head
    residmix transform model.safetensors cells.h5ad -o clean.h5ad
    residmix transform norms.safetensors patients.csv --centiles -o centiles.csv
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@options(
    click.option("--z", "scores", flag_value="z_scores", help="Write z-scores instead of residuals."),
    click.option("--centiles", "scores", flag_value="centiles", help="Write centiles (0 to 100) instead of "
                                                                     "residuals."),
    written("output", "-o", "--output", required=True, help=f"{COLUMN_FILES[:-1]}; .h5ad for .h5ad."),
    READING,
    ATTENDED,
)  # fmt: skip
@told_plainly
def transform(model: Path, data: str, output: Path, **chosen: Any) -> None:
    """Write the residuals of DATA by MODEL, in the units of the features and the order of DATA.

    With --z or --centiles, write scores of each value given its metadata: normative scores, if the model was fitted
    with --scale.
    """
    from residmix.plots.rows import features_of

    options = SimpleNamespace(**chosen)
    check_columns_file(output, "--output", h5ad=is_h5ad(data))
    check_targets({"--output": output}, force=options.force)
    began, fitted = process_time(), load_model(model)
    method = remover(fitted) if options.scores is None else getattr(fitted, options.scores, None)
    if method is None and options.scores is not None:
        kind = type(fitted).__name__
        raise click.ClickException(
            f"{str(model)!r} is a {kind}, which has no z-scores or centiles; use a model of residmix fit -k 0"
        )
    if method is None:
        raise click.ClickException(
            f"{str(model)!r} is a {type(fitted).__name__}, which removes nothing; use residmix predict"
        )
    stages = {"reading": reading(data), "writing": writing(data, output), "converting": converting(data, output)}
    with under_way(stages, quiet=options.quiet, began=began) as way:
        source = open_data(data, options)
        require_features(source, features_of(fitted))
        check_targets({"--output": output}, reads=source.paths, force=options.force)
        way.begin("writing")
        if is_h5ad(output):
            from residmix.anndata import write_h5ad

            write_h5ad(data, output, residual=method(source.table), layer=options.layer, basis=options.basis)
        else:
            write_columns(output, lambda path: method(source.table, out=path), partial(way.begin, "converting"))
    say(options.quiet, f"{source.table.n_rows:,} rows: {output}")
