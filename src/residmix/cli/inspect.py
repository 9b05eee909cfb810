"""``residmix inspect``: what a model file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from residmix.cli.shared.estimators import load_model
from residmix.cli.shared.options import ATTENDED, Examples, options
from residmix.cli.shared.telling import plain, print_table, told_plainly

__all__ = ["inspect"]


@click.command(
    cls=Examples,
    examples="""
    residmix inspect model.safetensors
    residmix inspect model.safetensors --json | jq .settings.formula
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@options(ATTENDED)
@told_plainly
def inspect(model: Path, as_json: bool, quiet: bool, force: bool) -> None:
    """Print what MODEL was fitted with and what it found."""
    fitted = load_model(model)
    if not (hasattr(fitted, "means_") or hasattr(fitted, "r2_")):
        summary: dict[str, Any] = {"model": type(fitted).__name__}
        click.echo(json.dumps(summary) if as_json else summary["model"])
        return
    from residmix.report.gather import gather
    from residmix.report.summarise import summarise

    summary = summarise(gather(fitted))
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    removed, preserved = summary["metadata_columns"], summary["preserved_columns"]
    lines = {
        "model": summary["model"],
        "rows": f"{summary['n_rows']:,}" if summary["n_rows"] else None,
        "formula": summary["formula"],
        "preserve": summary["preserve"],
        "needs columns": ", ".join([*removed, *preserved]),
        "features": f"{len(summary['feature_names']):,}: {', '.join(summary['feature_names'][:12])}"
        + (" ..." if len(summary["feature_names"]) > 12 else ""),
        "explained": f"{100 * summary['explained']:.1f} %" if removed else None,
        "components": f"{len(summary['components'])} ({summary['covariance_type']})" if summary["components"] else None,
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<14} {plain(str(value))}")
    for note in summary["notes"]:
        click.echo(f"{'note':<14} {plain(note['message'])}")
    if summary["components"]:
        click.echo()
        names = summary["feature_names"][:6]
        rows = [
            (str(row["number"]), f"{row['weight']:.3f}", *(f"{value:+.4g}" for value in row["mean"][: len(names)]))
            for row in summary["components"]
        ]
        print_table("Components", ("component", "weight", *names), rows)
