"""The ``residmix`` command. Results go to standard output, messages to standard error."""

from __future__ import annotations

from typing import Any

import click

from residmix import __version__
from residmix.cli.confounders import confounders
from residmix.cli.demo import demo
from residmix.cli.fit import fit
from residmix.cli.inspect import inspect
from residmix.cli.merge import merge
from residmix.cli.predict import predict
from residmix.cli.report import report
from residmix.cli.sample import sample
from residmix.cli.transform import transform

__all__ = ["main"]

ORDER = ("demo", "fit", "transform", "predict", "sample", "report", "inspect", "merge", "confounders")


class InOrder(click.Group):
    """A group whose help lists the subcommands in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ORDER)


def _completion(ctx: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    if shell is None or ctx.resilient_parsing:
        return
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "residmix", "_RESIDMIX_COMPLETE").source())
    ctx.exit()


@click.group(
    name="residmix",
    cls=InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "RESIDMIX"},
)
@click.version_option(__version__, prog_name="residmix")
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    is_eager=True,
    expose_value=False,
    callback=_completion,
    help="Print the completion script of a shell.",
)
def main(**nothing: Any) -> None:
    """Remove the effects of metadata; model the residuals as a mixture of Gaussians.

    Start with "residmix demo". Results go to standard output, messages to standard error.
    """


for _command in (demo, fit, transform, predict, sample, report, inspect, merge, confounders):
    main.add_command(_command)
