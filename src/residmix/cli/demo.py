"""``residmix demo``: a first example, with penguins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from residmix.cli.fit import fit, run
from residmix.cli.shared.options import ATTENDED, Examples, options, seed
from residmix.cli.shared.telling import say, told_plainly

__all__ = ["demo"]

FEATURES = "bill_length_mm,bill_depth_mm,flipper_length_mm,body_mass_g"


@click.command(
    cls=Examples,
    examples="""
    residmix demo
    residmix demo --output-dir /tmp/penguins --force
    """,
)
@options(
    click.option(
        "--output-dir", "-o", type=click.Path(file_okay=False, path_type=Path), default=Path("residmix-demo"),
        show_default=True, help="Folder for the report and the model.",
    ),
    seed(),
    ATTENDED,
)  # fmt: skip
@told_plainly
def demo(output_dir: Path, **chosen: Any) -> None:
    """Find the species of 333 penguins after removing the effect of sex.

    The measurements of the Palmer penguins, which come with the package, are residualized on sex. A mixture of three
    Gaussians is fitted to the residuals and compared with the species.
    """
    from residmix.data import penguins_file

    output_dir.mkdir(parents=True, exist_ok=True)
    say(chosen["quiet"], "344 penguins; metadata: sex")
    with penguins_file() as path:
        own = {
            "formula": "C(sex)", "features": FEATURES, "components": 3, "drop_missing": True, "compare": "species",
            "output": output_dir / "penguins.safetensors", "report": output_dir / "report.html", **chosen,
        }  # fmt: skip
        # everything else as the command has it
        usual = fit.make_context("fit", [str(path)], parent=click.get_current_context().parent).params
        run(str(path), SimpleNamespace(**{**usual, **own}))
