"""``residmix merge``: merge models of several parts of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from residmix.cli.shared.estimators import load_model
from residmix.cli.shared.options import ATTENDED, Examples, options, written
from residmix.cli.shared.output import check_targets
from residmix.cli.shared.telling import say, told_plainly

__all__ = ["merge"]


@click.command(
    cls=Examples,
    examples="""
    residmix merge site-a.safetensors site-b.safetensors -o both.safetensors
    """,
)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@options(written("output", "-o", "--output", required=True, help="Model file to write."), ATTENDED)
@told_plainly
def merge(models: tuple[Path, ...], output: Path, as_json: bool, quiet: bool, force: bool) -> None:
    """Merge models of parts of the data into the model of all rows, without the rows."""
    from residmix.persistence import save

    check_targets({"--output": output}, reads=models, force=force)
    first: Any = load_model(models[0])
    if not hasattr(first, "merge"):
        raise click.ClickException(
            f"{str(models[0])!r} is a {type(first).__name__}, which can't be merged; only models of residmix fit -k "
            "0 can"
        )
    for path in models[1:]:
        try:
            first.merge(load_model(path))
        except (TypeError, ValueError) as error:
            raise click.ClickException(f"{str(path)!r}: {error}") from error
    save(first, output)
    say(quiet, f"{len(models)} models: {output}")
