"""The ``residmix`` command. Results go to standard output, messages to standard error."""

from __future__ import annotations

import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from residmix import __version__

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

SHOWN_ROWS = 5000
PENGUIN_FEATURES = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")


class Examples(click.Command):
    """A command whose help begins with examples."""

    def __init__(self, *args: Any, examples: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            for line in self.examples.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")


def told_plainly(function: F) -> F:
    """Turn errors that a user can cause into one line and exit status 1; ``--debug`` shows the traceback.

    A warning is a line on standard error, without the place in the code, which isn't the user's.
    """

    @wraps(function)
    def told(*args: Any, **options: Any) -> Any:
        debug = options.pop("debug")
        try:
            with warnings.catch_warnings():
                if not debug:
                    warnings.showwarning = lambda message, *place: _say(options["quiet"], f"Warning: {message}")
                return function(*args, **options)
        except (ValueError, TypeError, OSError, ImportError) as error:
            if debug:
                raise
            raise click.ClickException(_as_options(str(error))) from error

    return told  # type: ignore[return-value]


def _as_options(message: str) -> str:
    """Return an error in which remedies that are keyword arguments in Python are options of the command."""
    remedy = "--drop-missing leaves such rows out"
    if "; give missing=" in message:
        return f"{message.partition('; give missing=')[0]}; {remedy}"
    return message.replace("drop or impute such rows first", remedy)


def shared_options(function: F) -> F:
    """Add the options that every subcommand has."""
    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors."),
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
        click.option("--force", is_flag=True, help="Overwrite files that exist."),
    ):
        function = option(function)
    return function


@click.group(name="residmix", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="residmix")
def main() -> None:
    """Take out what the metadata explains; model what is left as a mixture of Gaussians.

    Start with "residmix demo".
    """


@main.command(
    cls=Examples,
    examples="""
    residmix demo
    residmix demo --output-dir /tmp/penguins --force
    """,
)
@click.option(
    "--output-dir",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("residmix-demo"),
    show_default=True,
    help="Folder for the report and the model.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the starts.")
@shared_options
@told_plainly
def demo(output_dir: Path, seed: int, as_json: bool, quiet: bool, force: bool) -> None:
    """Find the species of 333 penguins, with their sex taken out.

    The measurements of the Palmer penguins, which ship with the package, are residualized on sex; a mixture of three
    Gaussians is fitted to what is left and compared with the species, which it has not seen.
    """
    from residmix.data import penguins

    output_dir.mkdir(parents=True, exist_ok=True)
    table = penguins()
    _say(quiet, "333 penguins (the 11 of 344 rows without a sex are left out); metadata: sex")
    _run(
        table,
        formula="C(sex)",
        features=PENGUIN_FEATURES,
        compare="species",
        options={"n_components": 3, "random_state": seed},
        model_path=output_dir / "penguins.safetensors",
        report_path=output_dir / "report.html",
        as_json=as_json,
        quiet=quiet,
        force=force,
    )


@main.command(
    cls=Examples,
    examples="""
    residmix fit scans.parquet --formula "C(site) + age" -o model.safetensors
    residmix fit cells.csv --formula "C(batch)" --features g1,g2,g3 -k 5 --report cells.html
    residmix fit 'parts/*.parquet' --formula "C(site)" --estimation joint --gating metadata -o m.safetensors
    """,
)
@click.argument("data")
@click.option("--formula", required=True, help='The metadata to take out, such as "C(site) + age".')
@click.option("--features", help="Feature columns, separated by commas. [default: numeric, not in the formula]")
@click.option("--preserve", help="Effects to estimate beside and keep, as a formula.")
@click.option("--components", "-k", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--covariance", type=click.Choice(["full", "tied", "diag", "spherical"]), default="full", show_default=True
)
@click.option("--estimation", type=click.Choice(["two-stage", "joint"]), default="two-stage", show_default=True)
@click.option("--gating", type=click.Choice(["constant", "metadata"]), default="constant", show_default=True)
@click.option("--compare", help="A column to compare the components with.")
@click.option("--drop-missing", is_flag=True, help="Leave out rows in which a used column is missing.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the starts.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Model file to write.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="HTML report to write.")
@shared_options
@told_plainly
def fit(
    data: str,
    formula: str,
    features: str | None,
    preserve: str | None,
    components: int,
    covariance: str,
    estimation: str,
    gating: str,
    compare: str | None,
    drop_missing: bool,
    seed: int,
    output: Path | None,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    force: bool,
) -> None:
    """Fit a ResidualMixture to DATA: a Parquet, Arrow or CSV file, a folder or a pattern of them."""
    from residmix.sources import scan
    from residmix.sources.files import find_files
    from residmix.sources.frames import require_columns

    table: Any = scan(data)
    for path in (output, report):
        if path is not None and path.exists() and any(path.samefile(source) for source in find_files(data)):
            raise click.ClickException(f"the output {str(path)!r} is one of the files that are read; choose another")
    if compare is not None:
        require_columns((compare,), table.columns, data)
    names = tuple(name.strip() for name in features.split(",")) if features else None
    if drop_missing:
        table = _complete(table, formula, preserve, names, compare)
    _run(
        table,
        formula=formula,
        features=names,
        compare=compare,
        options={
            "n_components": components,
            "covariance_type": covariance,
            "estimation": estimation,
            "gating": gating,
            "preserve": preserve,
            "random_state": seed,
        },
        model_path=output,
        report_path=report,
        as_json=as_json,
        quiet=quiet,
        force=force,
    )


def _run(
    table: Any,
    *,
    formula: str,
    features: tuple[str, ...] | None,
    compare: str | None,
    options: dict[str, Any],
    model_path: Path | None,
    report_path: Path | None,
    as_json: bool,
    quiet: bool,
    force: bool,
) -> None:
    """Fit, describe, write: what ``demo`` and ``fit`` share."""
    written = [path for path in (model_path, report_path) if path is not None]
    for target in written:
        if target.exists() and not force:
            raise click.ClickException(f"{str(target)!r} exists; choose another name or pass --force")
        if not target.parent.is_dir():
            raise click.ClickException(f"can't write {str(target)!r}: the folder {str(target.parent)!r} doesn't exist")
    if len({path.resolve() for path in written}) < len(written):
        raise click.ClickException(f"--output and --report are both {str(model_path)!r}; give them different names")

    from residmix.conditional.residual_mixture import ResidualMixture
    from residmix.persistence import save
    from residmix.report.build import build_report
    from residmix.report.html import write_report
    from residmix.report.summarise import summarise

    features = _features(table, formula, options.get("preserve"), features, compare)
    model = ResidualMixture(formula=formula, features=list(features), **options)
    start = time.perf_counter()
    model.fit(table)
    seconds = time.perf_counter() - start

    metadata_names = _metadata_columns(formula)
    shown, n_rows = _sample(table, [*features, *metadata_names, *([compare] if compare else [])])
    X = shown[list(features)].to_numpy(dtype=float)
    described: dict[str, Any] = {
        "feature_names": features,
        "metadata": {name: shown[name].to_numpy() for name in metadata_names},
        "reference": (compare, shown[compare].to_numpy()) if compare else None,
        "n_rows": n_rows,
        "command": shlex.join(["residmix", *sys.argv[1:]]),
    }
    residual, labels = model.residuals(shown), model.predict(shown)
    if report_path is None:
        summary = summarise(model, X, residual, labels, **described)
    else:
        _say(quiet, "measuring how much metadata is left ...")
        described["association"] = _measured(shown, model, labels)
        summary, page = build_report(model, X, residual, labels, **described)
        write_report(page, report_path)
    if model_path is not None:
        save(model, model_path)

    if as_json:
        click.echo(json.dumps(summary, indent=1))
    elif not quiet:
        _print_summary(summary)
    _say(quiet, f"fitted in {seconds:.1f} s, {model.n_iter_} iterations")
    for path, what in ((report_path, "report"), (model_path, "model")):
        if path is not None:
            _say(quiet, f"{what}: {path}")


def _measured(shown: pd.DataFrame, model: Any, labels: Any) -> Any:
    """Measure the metadata in features and residuals; the residualizer is fitted anew in each fold."""
    from residmix.diagnostics.association import association
    from residmix.errors import ResidmixWarning
    from residmix.removal.residualizer import Residualizer

    fresh = Residualizer(
        model.formula, preserve=model.preserve, features=model.features, on_unknown="mean", missing=model.missing
    )
    options = {"formula": model.formula, "features": model.features, "missing": model.missing, "n_permutations": 49}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)  # the table itself shows what they would say
        return association(shown, after=fresh, components=labels, **options)


def _metadata_columns(formula: str) -> list[str]:
    from residmix.design.formula import formula_columns

    return list(formula_columns(formula))


def _features(
    table: Any, formula: str, preserve: str | None, features: tuple[str, ...] | None, compare: str | None
) -> tuple[str, ...]:
    """Return the feature columns: the ones asked for, else the numeric ones with no other role."""
    from residmix.sources import as_table
    from residmix.sources.frames import row_labels

    if features is not None:
        return features
    taken = {*_metadata_columns(formula), *(_metadata_columns(preserve) if preserve else ()), compare}
    numeric = as_table(table).numeric_columns
    found = tuple(name for name in numeric if name not in taken and name not in row_labels(numeric))
    if not found:
        raise click.ClickException("no numeric column is left to be a feature; name them with --features")
    return found


def _sample(table: Any, columns: list[str]) -> tuple[pd.DataFrame, int]:
    """Return at most SHOWN_ROWS evenly spaced rows of `table`, and how many it has."""
    import narwhals.stable.v2 as nw
    import numpy as np
    import pandas as pd

    from residmix.sources import as_table

    source = as_table(table)
    wanted = list(dict.fromkeys(columns))
    parts, seen = [], 0
    step = max(1, -(-(source.n_rows or 0) // SHOWN_ROWS))
    for chunk in source.chunks(wanted):
        frame = nw.from_native(chunk, eager_only=True)
        index = np.arange(-seen % step, len(frame), step)
        parts.append(frame[index.tolist()].to_pandas())
        seen += len(frame)
    return pd.concat(parts, ignore_index=True), seen


def _complete(
    table: Any, formula: str, preserve: str | None, features: tuple[str, ...] | None, compare: str | None
) -> pd.DataFrame:
    """Read the used columns into memory and leave out rows in which one of them is missing."""
    import narwhals.stable.v2 as nw
    import pandas as pd

    used = [*_features(table, formula, preserve, features, compare), *_metadata_columns(formula)]
    used += [*(_metadata_columns(preserve) if preserve else ()), *([compare] if compare else [])]
    wanted = list(dict.fromkeys(used))
    chunks = [nw.from_native(chunk, eager_only=True).to_pandas() for chunk in table.chunks(wanted)]
    return pd.concat(chunks, ignore_index=True).dropna().reset_index(drop=True)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    # a width for pipes: rich would wrap at 80 and cut the tables
    # without markup: a name such as "[a]" is a name and no style
    return Console(stderr=stderr, highlight=False, markup=False, width=None if sys.stdout.isatty() else 110)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        click.echo(text, err=True)


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.table import Table

    console = _console()
    names = summary["feature_names"]
    explained = Table(title="What the metadata explained", title_justify="left", box=None, pad_edge=False)
    for heading in ("feature", "sd before", "sd after", "explained"):
        explained.add_column(heading, justify="left" if heading == "feature" else "right")
    for row in summary["features"]:
        explained.add_row(
            row["name"], f"{row['sd_before']:.4g}", f"{row['sd_after']:.4g}", f"{100 * row['explained']:.1f} %"
        )
    console.print(explained)
    console.print()

    reference = summary["reference"] if summary["reference"] and summary["reference"]["kind"] == "groups" else None
    found = Table(title="Components of the residual", title_justify="left", box=None, pad_edge=False)
    found.add_column("component")
    found.add_column("weight", justify="right")
    shown = names[: 4 if reference else 6]
    for name in shown:
        found.add_column(name, justify="right")
    for level in reference["levels"][:6] if reference else ():
        found.add_column(level, justify="right", style="bold")
    for place, component in enumerate(summary["components"]):
        found.add_row(
            str(component["number"]),
            f"{component['weight']:.3f}",
            *(f"{value:+.4g}" for value in component["mean"][: len(shown)]),
            *(str(row[place]) for row in (reference["table"][:6] if reference else ())),
        )
    console.print(found)
    console.print()
    if reference:
        console.print(f"Agreement with {reference['name']}: adjusted Rand index {reference['ari']:.3f}")
    console.print(f"Log-likelihood per row: {summary['fit']['log_likelihood_per_row']:.4f}")
    for alert in summary["alerts"]:
        console.print(f"Note: {alert}")
