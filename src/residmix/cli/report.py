"""``residmix report``: write a report on a model and rows."""

from __future__ import annotations

import json
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import click

from residmix.cli.shared.columns import require_features
from residmix.cli.shared.data import complete_rows, open_data
from residmix.cli.shared.estimators import load_model
from residmix.cli.shared.options import ATTENDED, READING, Examples, options, written
from residmix.cli.shared.output import check_targets
from residmix.cli.shared.stages import drawing, measuring, reading, sampling, under_way
from residmix.cli.shared.summary import check_left, command_line, print_summary
from residmix.cli.shared.telling import say, told_plainly

__all__ = ["report"]


@click.command(
    cls=Examples,
    examples="""
    residmix report model.safetensors scans.parquet -o scans.html
    residmix report model.safetensors new.parquet -o new.json
    residmix report model.safetensors -o model.html
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@options(
    written("output", "-o", "--output", required=True, help="Report to write: .html, or .json."),
    click.option("--compare", help="A column to compare the components with."),
    click.option("--drop-missing", is_flag=True, help="Leave out rows in which a used column is missing."),
    click.option(
        "--fail-if-left", type=click.FloatRange(0.5, 1.0), metavar="AUC",
        help="Exit with status 1 if a held-out probe predicts a removed column with a higher AUC.",
    ),
    READING,
    ATTENDED,
)  # fmt: skip
@told_plainly
def report(model: Path, data: str | None, output: Path, **chosen: Any) -> None:
    """Write a report on MODEL and the rows of DATA; without DATA, on MODEL alone."""
    from residmix.errors import noting
    from residmix.persistence import describe
    from residmix.plots.rows import features_of
    from residmix.report.build import write
    from residmix.report.gather import gather
    from residmix.report.summarise import summarise

    options = SimpleNamespace(**chosen)
    if output.suffix.lower() not in (".html", ".htm", ".json"):
        raise click.UsageError(f"--output {str(output)!r} must end in .html or .json")
    check_targets({"--output": output}, force=options.force)
    began, fitted = process_time(), load_model(model)
    source, stages = None, {} if data is None else _stages(data, fitted, output)
    with under_way(stages, quiet=options.quiet, began=began) as way:
        with noting() as notes:
            if data is not None:
                source = open_data(data, options)
                require_features(source, features_of(fitted))
                check_targets({"--output": output}, reads=source.paths, force=options.force)
                if options.drop_missing:
                    source = complete_rows(source, _used(fitted, options.compare), options.quiet)
                say(options.quiet, "measuring the remaining association with metadata ...")
        found = gather(
            fitted,
            None if source is None else source.table,
            reference=options.compare,
            notes=[*getattr(fitted, "notes_", []), *notes],
            command=command_line(),
            begun=way.begin,
        )
        found.model_checksum = describe(model)["checksum"]
        summary = summarise(found)
        write(found, summary, output)
    say(options.quiet, f"report: {output}")
    if options.as_json:
        click.echo(json.dumps(summary, indent=1))
    elif not options.quiet and source is not None:
        print_summary(summary)
    if options.fail_if_left is not None:
        check_left(summary, options.fail_if_left, options.quiet)


def _stages(data: str, fitted: Any, output: Path) -> dict[str, float | None]:
    return {
        "reading": reading(data), "sampling": sampling(data), "measuring": measuring(fitted), "drawing": drawing(output)
    }  # fmt: skip


def _used(fitted: Any, compare: str | None) -> list[str]:
    from residmix.plots.rows import features_of, metadata_of

    removed, preserved = metadata_of(fitted)
    return [*features_of(fitted), *removed, *preserved, *([compare] if compare else [])]
