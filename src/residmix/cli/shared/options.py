"""Options that subcommands share, with the same name and meaning."""

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
    """Use a TOML file as defaults of the subcommand: its own table, or the whole file if it has none."""
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
    click.option("--quiet", "-q", is_flag=True, help="Print only errors."),
    click.option(
        "--config",
        type=click.Path(dir_okay=False, exists=True, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_defaults,
        help="A TOML file of options; the command line takes precedence.",
    ),
    click.option("--force", is_flag=True, help="Overwrite files that exist."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)

READING = (
    click.option("--sep", help="Column separator of CSV files. [default: a comma; a tab in .tsv files]"),
    click.option("--decimal", default=".", show_default=True, help="The decimal point of CSV files."),
    click.option("--thousands", help="Thousands separator in numbers of CSV files, such as ','."),
    click.option(
        "--na-values",
        multiple=True,
        metavar="TEXT",
        help="Text that means a missing value in CSV files, in addition to empty cells, NA and similar; can be "
        "repeated.",
    ),
    click.option("--layer", help="Layer of an .h5ad file with the features. [default: X]"),
    click.option("--basis", help="Embedding of an .h5ad file with the features, such as X_pca."),
)

FORMULA = (
    click.option("--formula", help='The metadata to remove, such as "C(site) + age".'),
    click.option("--preserve", help="Effects to estimate but not remove, as a formula."),
    click.option(
        "--features",
        help="Feature columns, separated by commas: names or patterns such as 'v*'. [default: numeric, not in the "
        "formula]",
    ),
    click.option("--exclude", help="Columns to leave out of the features: names or patterns."),
)

MIXTURE = (
    click.option(
        "--factors",
        type=click.IntRange(min=1),
        help="Number of factors of --family factor. [default: the best of 1 to 6]",
    ),
    click.option(
        "--noise", is_flag=True, help="Add a uniform component for rows that belong to no cluster; their label is -1."
    ),
    click.option("--t", "student", is_flag=True, help="Use Student t components, which are robust to outliers."),
    click.option(
        "--trim",
        type=click.FloatRange(0, 0.5, max_open=True),
        default=0.0,
        metavar="SHARE",
        help="Share of the least likely rows to leave out; their label is -1.",
    ),
    click.option(
        "--cells",
        type=click.FloatRange(0, 0.5, max_open=True),
        default=0.0,
        metavar="SHARE",
        help="Set values aside that are wrong amid a row that is right, at most this share of each feature, such as "
        "0.25.",
    ),
    click.option(
        "--eigenvalue-ratio",
        type=click.FloatRange(min=1),
        help="Upper bound of the ratio of the largest to the smallest variance in any direction.",
    ),
    click.option(
        "--reg-covar",
        type=click.FloatRange(min=0),
        default=1e-6,
        show_default=True,
        help="What is added to variances, so that no component collapses onto a few equal rows.",
    ),
    click.option(
        "--search",
        default="all",
        show_default=True,
        metavar="all|nearest|N",
        help="Components that the fit looks at for each row: all, the nearest 8, or the nearest N; for hundreds of "
        "components.",
    ),
    click.option(
        "--prior", type=click.Choice(["mclust"]), help="Use mclust's default prior for means and covariances."
    ),
)


def seed() -> Option[Any]:
    """Return the option for the random seed."""
    return click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")


def written(name: str, *flags: str, help: str, required: bool = False) -> Option[Any]:
    """Return an option that names a file to write."""
    return click.option(*flags, name, type=click.Path(dir_okay=False, path_type=Path), required=required, help=help)
