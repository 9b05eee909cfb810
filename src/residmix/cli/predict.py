"""``residmix predict``: the component of each row, probabilities, densities, p-values and wrong values."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import click

from residmix.cli.shared.columns import require_features
from residmix.cli.shared.data import is_h5ad, open_data
from residmix.cli.shared.estimators import load_model
from residmix.cli.shared.options import ATTENDED, COLUMN_FILES, READING, Examples, options, written
from residmix.cli.shared.output import check_columns_file, check_targets, write_columns
from residmix.cli.shared.stages import reading, under_way, writing
from residmix.cli.shared.telling import say, told_plainly

__all__ = ["predict"]


@click.command(
    cls=Examples,
    examples="""
    residmix predict model.safetensors new.parquet -o labels.csv
    residmix predict model.safetensors new.parquet --probabilities -o shares.parquet
    residmix predict model.safetensors new.csv --density -o - | sort -g | head
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@options(
    written("output", "-o", "--output", required=True, help=f"{COLUMN_FILES[:-1]}; .h5ad for .h5ad."),
    click.option("--probabilities", "what", flag_value="probabilities",
                 help="Write the probabilities of all components."),
    click.option("--density", "what", flag_value="density", help="Write the log-density of each row."),
    click.option("--outliers", "what", flag_value="outliers",
                 help="Write p-values: the probability that a row from the mixture is less likely."),
    click.option("--cells", "what", flag_value="cells",
                 help="Write which values are wrong, given the others of their row; needs a model of fit --cells."),
    READING,
    ATTENDED,
)  # fmt: skip
@told_plainly
def predict(model: Path, data: str, output: Path, what: str | None, **chosen: Any) -> None:
    """Write the most probable component of each row of DATA, numbered as in the report."""
    from residmix.plots.rows import features_of

    options = SimpleNamespace(**chosen)
    check_columns_file(output, "--output", h5ad=is_h5ad(data))
    check_targets({"--output": output}, force=options.force)
    began, fitted = process_time(), load_model(model)
    if not hasattr(fitted, "predict_proba"):
        raise click.ClickException(
            f"{str(model)!r} is a {type(fitted).__name__}, which has no components; fit one with -k"
        )
    stages = {"reading": reading(data), "writing": writing(data, output), "converting": 0.0}
    with under_way(stages, quiet=options.quiet, began=began) as way:
        source = open_data(data, options)
        require_features(source, features_of(fitted))
        check_targets({"--output": output}, reads=source.paths, force=options.force)
        method = {
            None: fitted.predict,
            "probabilities": fitted.predict_proba,
            "density": fitted.score_samples,
            "outliers": fitted.outlier_pvalues,
            "cells": fitted.outlier_cells,
        }[what]
        way.begin("writing")
        if is_h5ad(output):
            from residmix.anndata import write_h5ad

            write_h5ad(data, output, labels=fitted.predict(source.table), layer=options.layer, basis=options.basis)
        else:
            write_columns(output, lambda path: method(source.table, out=path), partial(way.begin, "converting"))
    say(options.quiet, f"{source.table.n_rows:,} rows: {output}")
