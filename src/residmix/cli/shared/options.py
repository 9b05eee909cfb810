"""Options that subcommands share: same name, same meaning, everywhere."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from residmix.errors import did_you_mean

__all__ = ["ATTENDED", "COLUMN_FILES", "FORMULA", "MIXTURE", "READING", "Examples", "options", "seed", "written"]

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]

COLUMN_FILES = "File to write: .parquet, .csv, .tsv, .arrow, or - for CSV."


class Examples(click.Command):
    """A command whose help begins with examples."""

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line in self.examples.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")
        super().format_help_text(ctx, formatter)


def options(*groups: Any) -> Callable[[F], F]:
    """Add options, or lists of them, in the order in which the help shows them."""
    flat = [option for group in groups for option in (group if isinstance(group, tuple) else (group,))]

    def add(function: F) -> F:
        for option in reversed(flat):
            function = option(function)
        return function

    return add


def _defaults(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Take what a TOML file says as defaults of the subcommand: its own table, or the whole file if it has none."""
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"can't read {str(path)!r}: {error}") from error
    chosen = content.get(str(ctx.info_name), None)
    if not isinstance(chosen, dict):
        chosen = {key: value for key, value in content.items() if not isinstance(value, dict)}
    names = {name: p for p in ctx.command.params for name in _names(p)}
    found: dict[str, Any] = {}
    for key, value in chosen.items():
        known = names.get(key.replace("_", "-").lower())
        if known is None or known.name in (None, parameter.name):
            raise click.UsageError(f"{str(path)!r} has {key!r}, which isn't an option{did_you_mean(key, names)}")
        found[str(known.name)] = _quoted(value) if isinstance(value, list) and not known.multiple else value
    ctx.default_map = {**(ctx.default_map or {}), **found}


def _names(parameter: click.Parameter) -> list[str]:
    return [name.lstrip("-").replace("_", "-").lower() for name in (*parameter.opts, *parameter.secondary_opts)]


def _quoted(names: list[Any]) -> str:
    """Return a list of names as one line of CSV, which is how options take it."""
    import csv
    import io

    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


ATTENDED = (
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
    click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors."),
    click.option(
        "--config",
        type=click.Path(dir_okay=False, exists=True, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_defaults,
        help="A TOML file of options; those on the command line win.",
    ),
    click.option("--force", is_flag=True, help="Overwrite files that exist."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)

READING = (
    click.option("--sep", help="What separates the columns of CSV files. [default: a comma, in .tsv files a tab]"),
    click.option("--decimal", default=".", show_default=True, help="The decimal point of CSV files."),
    click.option("--thousands", help="What separates thousands in numbers of CSV files, such as ','."),
    click.option(
        "--na-values",
        multiple=True,
        metavar="TEXT",
        help="What stands for a missing value in CSV files, beside "
        "nothing, NA and the like; several times for several.",
    ),
    click.option("--layer", help="Of an .h5ad file: the layer that holds the features. [default: X]"),
    click.option("--basis", help="Of an .h5ad file: the embedding that holds the features, such as X_pca."),
)

FORMULA = (
    click.option("--formula", help='The metadata to take out, such as "C(site) + age".'),
    click.option("--preserve", help="Effects to estimate beside and keep, as a formula."),
    click.option(
        "--features",
        help="Feature columns, separated by commas: names or patterns such as 'v*'. [default: numeric, not in the "
        "formula]",
    ),
    click.option("--exclude", help="Columns that are no features: names or patterns."),
)

MIXTURE = (
    click.option(
        "--factors", type=click.IntRange(min=1), help="Of --family factor: how many. [default: the best of 1 to 6]"
    ),
    click.option("--noise", is_flag=True, help="Rows may belong to no component; their label is -1."),
    click.option("--t", "student", is_flag=True, help="Student's t in place of Gaussians, for rows far out."),
    click.option(
        "--trim",
        type=click.FloatRange(0, 0.5, max_open=True),
        default=0.0,
        metavar="SHARE",
        help="The share of the rows, the least likely, that count for nothing; their label is -1.",
    ),
    click.option(
        "--eigenvalue-ratio",
        type=click.FloatRange(min=1),
        help="The largest variance in any direction, over the smallest, at most.",
    ),
    click.option("--prior", type=click.Choice(["mclust"]), help="A prior of means and covariances: mclust's default."),
)


def seed() -> Option[Any]:
    """Return the option for the seed of whatever is random."""
    return click.option("--seed", type=int, default=0, show_default=True, help="Seed of what is random.")


def written(name: str, *flags: str, help: str, required: bool = False) -> Option[Any]:
    """Return an option that names a file to write."""
    return click.option(*flags, name, type=click.Path(dir_okay=False, path_type=Path), required=required, help=help)
