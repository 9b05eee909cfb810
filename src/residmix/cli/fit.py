"""``residmix fit``: remove effects of metadata, fit a mixture, write the results."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from residmix.cli.shared.columns import Columns, plan_columns
from residmix.cli.shared.data import Data, complete_rows, open_data
from residmix.cli.shared.erasing import METHODS, check_erasing
from residmix.cli.shared.estimators import components, count, make_estimator, remover
from residmix.cli.shared.options import ATTENDED, FORMULA, MIXTURE, READING, Examples, options, seed, written
from residmix.cli.shared.output import check_columns_file, check_targets, write_columns
from residmix.cli.shared.stages import converting, drawing, measuring, preparing, probing, sampling, under_way, writing
from residmix.cli.shared.summary import check_left, command_line, print_summary
from residmix.cli.shared.sums import check_sums, fit_sums, leaving
from residmix.cli.shared.telling import say, tell_notes, told_plainly

if TYPE_CHECKING:
    from residmix.rows.course import Course

__all__ = ["fit", "run"]

TYPICAL_LEVELS = 6  # of a column that nobody has looked at yet


@click.command(
    cls=Examples,
    examples="""
    residmix fit scans.parquet --formula "C(site) + age" -o model.safetensors --report scans.html
    residmix fit scans.csv --formula "C(site)" --preserve "age + C(sex)" --shrinkage eb --scale --residuals clean.csv
    residmix fit cells.h5ad --basis X_pca --formula "C(batch)" -k 8 --labels clusters.csv
    residmix fit 'parts/*.parquet' --formula "C(site)" --joint -o m.safetensors
    residmix fit scans.csv --formula "C(site)" --fail-if-left 0.6
    residmix fit scans.csv --formula "C(site) + age" --erase full -o eraser.safetensors --residuals erased.csv
    """,
)
@click.argument("data")
@options(
    FORMULA,
    click.option(
        "--components", "-k", type=components, default=None,
        help="Number of Gaussians for the residuals: a number, 1:8 for the best of these, auto, or 0 for none.  "
             "[default: 3; 0 with --scale, --scale-by, --shrinkage or --reference]",
    ),
    click.option(
        "--family", "--covariance", "family", default="full", show_default=True,
        help="Covariance family: full, tied, diag, spherical, one of mclust's fourteen (EII to VVV), factor (for "
             "many features), a list for the best of these, or auto.",
    ),
    MIXTURE,
    click.option(
        "--criterion", type=click.Choice(["bic", "icl", "aic", "cv"]), default="bic", show_default=True,
        help="Criterion to choose the best.",
    ),
    click.option(
        "--joint", is_flag=True, help="Estimate effects and mixture together, with weights that depend on the metadata."
    ),
    click.option(
        "--gating", metavar="FORMULA", help="As --joint, for weights that depend on these terms, not --formula's."
    ),
    click.option(
        "--effects", type=click.Choice(["shared", "by-component"]), default="shared", show_default=True,
        help="Whether all components have the same effects, or each its own.",
    ),
    click.option(
        "--stepwise", is_flag=True,
        help="Choose the formula's terms, --joint's weights (or --gating's terms) and --effects by --criterion, one "
             "step at a time.",
    ),
    click.option(
        "--covariance-by", metavar="FACTOR",
        help="A factor of the formula: components get a covariance for each of its levels.",
    ),
    click.option("--scale", is_flag=True, help="Also adjust the spread of each level to the pooled one."),
    click.option(
        "--scale-by", metavar="FORMULA",
        help="As --scale, for a spread that depends on these terms of --formula and --preserve only; with --shrinkage "
             "eb and covariates among them this is ComBatLS.",
    ),
    click.option(
        "--covariances", type=click.Choice(["shrunk", "scores"]),
        help="With --scale or --scale-by, also adjust the covariance of each level to the pooled one; scores is "
             "CovBat as published.",
    ),
    click.option(
        "--shrinkage",
        help="Shrink effects: eb (ComBat), eb-one-row, eb-nonparametric, eb-robust, or blup for the levels of one "
        "factor.",
    ),
    click.option(
        "--erase", type=click.Choice(METHODS),
        help="Fit an eraser instead of residuals and mixture: linear (LEACE), or a transport by spread, component "
             "or full, with -k components; its certificate is in the report.",
    ),
    click.option(
        "--reference",
        help="The level that the others are adjusted to; with --erase a value for each column, as site=A,age=40.",
    ),
    click.option(
        "--missing", type=click.Choice(["error", "mean", "indicator", "em"]), default="error", show_default=True,
        help="What to do with missing metadata; em: fit the mixture with missing values in features.",
    ),
    click.option("--drop-missing", is_flag=True, help="Leave out rows in which a used column is missing."),
    click.option(
        "--on-unknown", type=click.Choice(["error", "mean"]), default="error", show_default=True,
        help="What to do later with a level that isn't in DATA.",
    ),
    click.option(
        "--on-entangled", type=click.Choice(["warn", "error"]), default="warn", show_default=True,
        help="Without components: whether to stop if removed and preserved effects are nearly collinear.",
    ),
    click.option("--compare", help="A column to compare the components with."),
    seed(),
    written("output", "-o", "--output", help="Model file to write."),
    written("residuals", "--residuals", help="File for the residuals: .parquet, .csv, .tsv, .arrow, or - for CSV."),
    written("labels", "--labels", help="File for the component of each row, in the order of DATA."),
    written("report", "--report", help="Report to write: .html, or .json."),
    click.option(
        "--fail-if-left", type=click.FloatRange(0.5, 1.0), metavar="AUC",
        help="Exit with status 1 if a held-out probe predicts a removed column with a higher AUC.",
    ),
    READING,
    written("checkpoint", "--checkpoint", help="File that holds the state of the fit while it runs."),
    click.option("--resume", is_flag=True, help="Continue from the checkpoint."),
    click.option("--dask", metavar="ADDRESS", help="Let the workers of this Dask cluster read the files."),
    click.option(
        "--moments-only", is_flag=True,
        help="Write only sums, for residmix merge; no rows leave the site. All sites need the same levels of "
             "factors, as in C(site, levels=['a', 'b']).",
    ),
    click.option(
        "--min-count", type=click.IntRange(min=1), default=5, show_default=True,
        help="With --moments-only, stop if a level, or pair of levels, has fewer rows than this.",
    ),
    click.option(
        "--audit", is_flag=True,
        help="Print which effects of --formula and --preserve can't be told apart, and levels of few rows, and stop; "
             "status 1 if there are any.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be done with rows and columns, and stop."),
    ATTENDED,
)  # fmt: skip
@told_plainly
def fit(data: str, **chosen: Any) -> None:
    """Remove the effects of a formula from DATA, and fit a mixture to the residuals.

    DATA is a Parquet, Arrow, CSV or .h5ad file, a folder or a pattern of files, or - for CSV on standard input.
    """
    run(data, SimpleNamespace(**chosen))


def run(data: str, chosen: SimpleNamespace) -> None:
    """Fit, write, describe."""
    _check_options(chosen)
    _check_outputs(data, chosen, reads=())
    with _under_way(data, chosen) as way:
        _run(data, chosen, way)


def _under_way(data: str, chosen: SimpleNamespace) -> AbstractContextManager[Course]:
    """Show how far a fit is, and what is left; of a mixture's that's known once a first pass has been made."""
    visits = 2 if chosen.scale or chosen.scale_by else 1
    lone = (
        isinstance(count(chosen), int) and not chosen.stepwise and "," not in chosen.family and chosen.family != "auto"
    )
    return under_way(
        {
            "reading": preparing(data),
            "fitting": None if count(chosen) or chosen.erase else visits * writing(data, Path("-")),
            "residuals": writing(data, chosen.residuals),
            "converting": converting(data, chosen.residuals),
            "labels": writing(data, chosen.labels),
            "sampling": sampling(data),
            "measuring": 0.0,
            "drawing": drawing(chosen.report),
        },
        quiet=chosen.quiet,
        lone=lone,
    )


def _run(data: str, chosen: SimpleNamespace, way: Course) -> None:
    from residmix.errors import noting

    with noting() as notes:
        source = open_data(data, chosen)
        if chosen.audit:
            _audit(source, chosen)
            return
        _check_outputs(data, chosen, reads=source.paths)
        columns = plan_columns(source, chosen)
        if chosen.report is not None or chosen.fail_if_left is not None:
            numbers = set(source.table.numeric_columns) if source.table.named else set()
            levels = [0 if name in numbers else TYPICAL_LEVELS for name in columns.metadata]
            way.expect("measuring", probing(len(columns.features), levels))
        say(chosen.quiet, columns.told())
        if chosen.drop_missing:
            source = complete_rows(source, columns.used, chosen.quiet)
        model = make_estimator(chosen, columns.features)
        tell_notes(chosen.quiet, [note for note in notes if note["kind"] != "left-out-columns"])
        if chosen.resume and not chosen.checkpoint.exists():
            say(chosen.quiet, f"there is no checkpoint {str(chosen.checkpoint)!r} yet: the fit begins anew")
        if chosen.dry_run:
            _tell_plan(source, columns, model, chosen)
            return
        way.begin("fitting")
        began = time.perf_counter()
        if chosen.moments_only:
            fit_sums(model, source.table, chosen)
        else:
            model = _fitted(model, source, chosen)
    seconds = time.perf_counter() - began
    model.notes_ = notes  # what was left out belongs to what the fit has to tell, here and in the file
    _write_model(model, source, chosen, way)
    tell_notes(chosen.quiet, [note for note in notes if note["kind"] != "left-out-columns"])
    iterations = f", {model.n_iter_} iteration{'' if model.n_iter_ == 1 else 's'}" if hasattr(model, "n_iter_") else ""
    say(chosen.quiet, f"fitted in {seconds:.1f} s{iterations}")
    if chosen.moments_only:
        say(chosen.quiet, "\n".join(["sums of the data in this file:", *(f"  {line}" for line in leaving(model))]))
        return
    _describe(model, source, chosen, way)


def _fitted(model: Any, source: Data, chosen: SimpleNamespace) -> Any:
    """Return the fitted model, or the one that is chosen step by step."""
    if not chosen.stepwise:
        return model.fit(source.table)
    from residmix.conditional.stepwise import stepwise

    found = stepwise(model, source.table)
    tried = len(dict.fromkeys(zip(*(found.selection_[name] for name in ("formula", "gating", "effects")), strict=True)))
    weights = f"{found.gating} weights" if found.gating in ("constant", "metadata") else f"weights by {found.gating}"
    say(chosen.quiet, f"chosen of {tried} models: {found.formula}, {weights}, {found.effects} effects")
    return found


def _check_options(chosen: SimpleNamespace) -> None:
    check_sums(chosen)
    check_erasing(chosen)
    if chosen.effects != "shared" and chosen.formula is None:
        raise click.UsageError("--effects needs --formula")
    if chosen.covariance_by is not None and chosen.formula is None:
        raise click.UsageError("--covariance-by needs --formula")
    if chosen.stepwise and (chosen.formula is None or chosen.components == 0 or chosen.checkpoint is not None):
        raise click.UsageError("--stepwise needs --formula and a mixture (-k), and doesn't work with --checkpoint")
    if chosen.resume and chosen.checkpoint is None:
        raise click.UsageError("--resume needs --checkpoint, the file to continue from")
    if chosen.audit and chosen.formula is None:
        raise click.UsageError("--audit needs --formula")
    if chosen.fail_if_left is not None and chosen.formula is None:
        raise click.UsageError("--fail-if-left needs --formula")
    if chosen.formula is None and (
        chosen.preserve or chosen.scale or chosen.scale_by or chosen.shrinkage or chosen.joint
    ):
        raise click.UsageError("--preserve, --scale, --scale-by, --shrinkage and --joint need --formula")
    if chosen.scale and chosen.scale_by is not None:
        raise click.UsageError("--scale and --scale-by are two answers to one question; leave one of them out")


def _check_outputs(data: str, chosen: SimpleNamespace, reads: Any) -> None:
    targets: dict[str, Path | None] = {
        "--output": chosen.output, "--report": chosen.report, "--residuals": chosen.residuals, "--labels": chosen.labels
    }  # fmt: skip
    for option in ("--residuals", "--labels"):
        path = targets[option]
        if path is not None:
            check_columns_file(path, option)
    check_targets(targets, reads=reads, force=chosen.force)
    kept = chosen.checkpoint
    if kept is not None and kept.exists() and not chosen.resume:
        raise click.ClickException(
            f"the checkpoint {str(kept)!r} exists; use --resume to continue from it, or delete it"
        )


def _write_model(model: Any, source: Data, chosen: SimpleNamespace, way: Course) -> None:
    """Write what the fit gave before anything else is tried with it."""
    from residmix.persistence import save

    if chosen.output is not None:
        save(model, chosen.output)
        say(chosen.quiet, f"model: {chosen.output}")
    if chosen.residuals is not None:
        method = remover(model)
        way.begin("residuals")
        write_columns(chosen.residuals, lambda path: method(source.table, out=path), lambda: way.begin("converting"))
        say(chosen.quiet, f"residuals: {chosen.residuals}")
    if chosen.labels is not None:
        if not hasattr(model, "predict"):
            raise click.UsageError("--labels needs components; set -k")
        way.begin("labels")
        write_columns(chosen.labels, lambda path: model.predict(source.table, out=path))
        say(chosen.quiet, f"labels: {chosen.labels}")


def _describe(model: Any, source: Data, chosen: SimpleNamespace, way: Course) -> None:
    from residmix.persistence import describe
    from residmix.report.gather import gather
    from residmix.report.summarise import summarise

    probes = chosen.report is not None or chosen.fail_if_left is not None
    if probes and chosen.formula:
        way.expect("measuring", measuring(model))
        say(chosen.quiet, "measuring the remaining association with metadata ...")
    found = gather(
        model, source.table, reference=chosen.compare, probes=probes, command=command_line(chosen), begun=way.begin
    )
    if chosen.output is not None:
        found.model_checksum = describe(chosen.output)["checksum"]
    summary = summarise(found)
    if chosen.report is not None:
        from residmix.report.build import write

        write(found, summary, chosen.report)
        say(chosen.quiet, f"report: {chosen.report}")
    if "-" in (str(chosen.residuals), str(chosen.labels)):
        pass  # standard output holds the columns
    elif chosen.as_json:
        click.echo(json.dumps(summary, indent=1))
    elif not chosen.quiet:
        print_summary(summary)
    if chosen.fail_if_left is not None:
        check_left(summary, chosen.fail_if_left, chosen.quiet)


def _audit(source: Data, chosen: SimpleNamespace) -> None:
    """Print what the design alone tells; exit with status 1 if something stands out."""
    from residmix.diagnostics.design_audit import design_audit

    found = design_audit(source.table, chosen.formula, preserve=chosen.preserve)
    click.echo(json.dumps(found.to_dict(), indent=1) if chosen.as_json else str(found))
    if not found.passed:
        raise click.exceptions.Exit(1)


def _tell_plan(source: Data, columns: Columns, model: Any, chosen: SimpleNamespace) -> None:
    """Print what would be done with rows and columns, and what it would ask for."""
    n, d, p = source.table.n_rows, len(columns.features), len(columns.metadata)
    K = getattr(model, "n_components", 0)
    K = 9 if isinstance(K, str) else max(K) if isinstance(K, list) else K
    size = sum(path.stat().st_size for path in source.paths)
    plan = {
        "rows": n,
        "features": list(columns.features),
        "removed": list(columns.metadata),
        "preserved": list(columns.preserved),
        "left_out": columns.left_out,
        "model": type(model).__name__,
        "bytes_to_read": size,
        "bytes_as_numbers": 8 * n * (d + p),
        "memory_of_moments": 8 * max(K, 1) * (d + p) ** 2,
        "passes": 2 if K == 0 else "2, a few for the starts, and one an iteration",
        "writes": [str(path) for path in (chosen.output, chosen.report, chosen.residuals, chosen.labels) if path],
    }
    if chosen.as_json:
        click.echo(json.dumps(plan, indent=1))
        return
    for name, value in plan.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} ({reason})" for key, reason in value.items())
        elif isinstance(value, list):
            value = ", ".join(value[:20]) + (f" and {len(value) - 20} more" if len(value) > 20 else "")
        click.echo(f"{name.replace('_', ' '):<18} {f'{value:,}' if isinstance(value, int) else value or 'none'}")
