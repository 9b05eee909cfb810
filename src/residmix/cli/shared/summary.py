"""Results of a fit, as tables on standard output."""

from __future__ import annotations

import math
import shlex
import sys
from typing import Any

import click

from residmix.cli.shared.telling import as_options, plain, print_table, say

__all__ = ["check_left", "command_line", "print_summary"]

MOST_FEATURES = 20


def command_line(chosen: Any = None) -> str:
    """Return the command line."""
    return shlex.join(["residmix", *sys.argv[1:]])


def print_summary(summary: dict[str, Any]) -> None:
    """Print the verdict, what was explained, and the components."""
    if summary["association"]:
        click.echo(as_options(plain(summary["verdict"]["headline"])))
        if summary["verdict"]["advice"]:
            click.echo(as_options(summary["verdict"]["advice"]))
        click.echo()
    if summary["certificate"]:
        click.echo(plain(summary["certificate"]["text"], lines=True))
        click.echo()
    elif summary["metadata_columns"]:
        _print_features(summary["features"])
    if summary["components"]:
        _print_components(summary)
    for row in summary["metadata"]:
        if row["kind"] == "groups" and row["ami"] > 0.2:
            click.echo(plain(f"The components follow {row['name']}: adjusted mutual information {row['ami']:.2f}"))
    told = {note["message"] for note in summary["notes"]}
    for alert in summary["alerts"]:
        if alert["message"] not in told and alert["kind"] != "still-there":
            click.echo(f"Note: {as_options(plain(alert['message']))}")


def _print_features(features: list[dict[str, Any]]) -> None:
    shown = sorted(features, key=lambda row: -(row["explained"] or 0))[:MOST_FEATURES]
    shown = features if len(features) <= MOST_FEATURES else shown
    title = "What the metadata explained"
    if len(shown) < len(features):
        title += f" (the {len(shown)} most affected of {len(features):,} features)"
    print_table(
        title,
        ("feature", "sd before", "sd after", "explained"),
        [
            (row["name"], f"{row['sd_before']:.4g}", f"{row['sd_after']:.4g}", f"{100 * row['explained']:.1f} %")
            for row in shown
            if row["sd_before"] is not None and row["explained"] is not None
        ],
    )


def _print_components(summary: dict[str, Any]) -> None:
    reference = summary["reference"] if summary["reference"] and summary["reference"]["kind"] == "groups" else None
    names = summary["feature_names"][: 4 if reference else 6]
    levels = reference["levels"][:6] if reference else []
    rows = [
        (
            str(component["number"]),
            f"{component['weight']:.3f}",
            *(f"{value:+.4g}" for value in component["mean"][: len(names)]),
            *(str(row[place]) for row in (reference["table"][:6] if reference else ())),
        )
        for place, component in enumerate(summary["components"])
    ]
    what = "the residual" if summary["metadata_columns"] else "the features"
    print_table(f"Components of {what}", ("component", "weight", *names, *levels), rows)
    if reference:
        click.echo(f"Agreement with {plain(reference['name'])}: adjusted Rand index {reference['ari']:.3f}")
    click.echo(f"Log-likelihood per row: {summary['fit']['log_likelihood_per_row']:.4f}")


def check_left(summary: dict[str, Any], most: float, quiet: bool) -> None:
    """Exit with status 1 if a held-out probe reads a removed column better than `most`, an area under the curve.

    For a number it is the concordance 1/2 + asin(r)/pi of a Gaussian whose correlation with it is r, the root of the
    share that the probe predicts (Greiner 1909).
    """
    worst, where = 0.5, ""
    for row in summary["association"]:
        if not row["held_out"] or row.get("after") is None:
            continue
        after = row["after"]
        if row["kind"] == "number":
            after = 0.5 + math.asin(math.sqrt(min(max(after, 0.0), 1.0))) / math.pi
        if after > worst:
            worst, where = after, f"a held-out {row['probe']} probe predicts {row['metadata']}"
    if not summary["association"]:
        raise click.ClickException(
            "the association with metadata could not be measured, so --fail-if-left can't be checked"
        )
    if worst > most:
        raise click.ClickException(plain(f"{where} with AUC {worst:.3f}, more than {most:g}"))
    say(quiet, f"no held-out probe has an AUC above {most:g}: the best has {worst:.3f}")
