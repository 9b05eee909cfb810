"""``residmix inspect``: show the content of a model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from residmix.cli.shared.estimators import load_model
from residmix.cli.shared.options import ATTENDED, Examples, options
from residmix.cli.shared.sums import leaving
from residmix.cli.shared.telling import plain, print_table, told_plainly
from residmix.persistence.about import settings_of

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
    """Print the settings and results of MODEL."""
    from residmix.persistence import describe

    fitted, said = load_model(model), describe(model)
    if not (hasattr(fitted, "means_") or hasattr(fitted, "r2_") or hasattr(fitted, "certificate_")):
        summary: dict[str, Any] = {"model": type(fitted).__name__, "model_file": said}
        if as_json:
            click.echo(json.dumps(summary, indent=1))
        else:
            _tell({"model": summary["model"], **_of_the_file(fitted, said)})
        return
    from residmix.report.gather import gather
    from residmix.report.summarise import summarise

    summary = summarise(gather(fitted)) | {"model_checksum": said["checksum"], "model_file": said}
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    removed, preserved, erased = (summary[key] for key in ("metadata_columns", "preserved_columns", "certificate"))
    lines = {
        "model": summary["model"],
        "formula": summary["formula"],
        "preserve": summary["preserve"],
        "needs columns": ", ".join([*removed, *preserved]),
        "features": f"{len(summary['feature_names']):,}: {', '.join(summary['feature_names'][:12])}"
        + (" ..." if len(summary["feature_names"]) > 12 else ""),
        "explained": f"{100 * summary['explained']:.1f} %" if removed and not erased else None,
        "certificate": ("passed" if erased["passed"] else "failed") if erased else None,
        "components": f"{len(summary['components'])} ({summary['covariance_type']})" if summary["components"] else None,
    }
    _tell(lines | _of_the_file(fitted, said))
    for line in leaving(fitted):
        click.echo(f"{'holds':<14} {plain(line)}")
    for note in summary["notes"]:
        click.echo(f"{'note':<14} {plain(note['message'])}")
    if erased:
        click.echo(f"\n{plain(str(fitted.certificate_), lines=True)}")
    if summary["components"]:
        click.echo()
        names = summary["feature_names"][:6]
        rows = [
            (str(row["number"]), f"{row['weight']:.3f}", *(f"{value:+.4g}" for value in row["mean"][: len(names)]))
            for row in summary["components"]
        ]
        print_table("Components", ("component", "weight", *names), rows)


def _of_the_file(fitted: Any, said: dict[str, Any]) -> dict[str, Any]:
    """Return what the file says: rows, settings that aren't the default, who wrote it, and its checksum."""
    usual = settings_of(type(fitted)())
    own = {name: value for name, value in said["settings"].items() if value != usual.get(name)}
    return {
        "rows": f"{said['rows']:,}" if type(said["rows"]) is int else None,
        "settings": ", ".join(f"{name}={_shown(value)}" for name, value in own.items()),
        "written by": ", ".join(f"{name} {version}" for name, version in said["versions"].items()),
        "checksum": said["checksum"],
    }


def _shown(value: Any, most: int = 12) -> str:
    """Return a setting as Python writes it, of a long list the beginning and how many there are."""
    if not isinstance(value, list) or len(value) <= most:
        return repr(value)
    return f"[{', '.join(map(repr, value[:most]))}, ...: {len(value):,} in all]"


def _tell(lines: dict[str, Any]) -> None:
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<14} {plain(str(value))}")
