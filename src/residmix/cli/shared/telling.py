"""Messages on standard error; errors and warnings with options of the command as remedies."""

from __future__ import annotations

import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

__all__ = ["as_options", "plain", "print_table", "say", "tell_notes", "told_plainly"]

F = TypeVar("F", bound=Callable[..., Any])

WARNED = "residmix.warned"  # in click's context: messages that were shown

# Remedies that are keyword arguments in Python, as what one types on the command line.
_REMEDIES = (
    (re.compile(r"; set missing='mean'[^;]*"), "; --drop-missing leaves such rows out, --missing mean keeps them"),
    (re.compile(r"drop or impute such rows first"), "--drop-missing leaves such rows out, --missing em keeps them"),
    (re.compile(r"\breg_covar\b"), "--reg-covar"),
    (re.compile(r"\ban Eraser\b"), "--erase full"),
    (re.compile(r"estimation='joint' with gating='metadata'|estimation=\"joint\" with gating=\"metadata\""), "--joint"),
    (re.compile(r"estimation=['\"]joint['\"]"), "--joint"),
    (re.compile(r"\bcovariance=['\"](\w+)['\"]"), r"--covariances \1"),
    (re.compile(r"\bcovariance_type=['\"]?(\w+)['\"]?"), r"--family \1"),
    (re.compile(r"such as principal components"), "such as principal components (of an .h5ad file --basis X_pca)"),
    (
        re.compile(r"Expected n_samples >= n_components but got n_components = (\d+), n_samples = (\d+)"),
        r"-k \1 asks for more components than there are rows (\2); use a smaller -k",
    ),
    (
        re.compile(r"Found array with (\d+) sample\(s\) of positive weight while a minimum of (\d+) is required"),
        r"rows to fit a mixture to: \1, of at least \2 that are needed",
    ),
    (re.compile(r"\bcovariance="), "--covariances"),
    (re.compile(r"\bshrinkage=(?!['\"{])"), "--shrinkage"),
    (re.compile(r"\bn_components\b ?=? ?"), "-k "),
    (re.compile(r"\b(?:scale=True)\b"), "--scale"),
    (re.compile(r"\bscale=(?=['\"])"), "--scale-by "),
    (re.compile(r"\bn_factors=(\d+)"), r"--factors \1"),
    (re.compile(r"\btrim=([\d.]+)"), r"--trim \1"),
    (re.compile(r"\bcells=([\d.]+)"), r"--cells \1"),
    (re.compile(r"\bnoise=True\b"), "--noise"),
    (re.compile(r"\bsearch=['\"]?(\w+)['\"]?"), r"--search \1"),
    (re.compile(r"\beigenvalue_ratio=([\d.]+)"), r"--eigenvalue-ratio \1"),
    (re.compile(r"\bmethod=['\"](\w+)['\"]"), r"--erase \1"),
    (re.compile(r"\bset on_unknown=['\"](\w+)['\"]"), r"fit with --on-unknown \1"),
    (re.compile(r"\bon_unknown=['\"](\w+)['\"]"), r"--on-unknown \1"),
    (re.compile(r"\bmissing=['\"](\w+)['\"]"), r"--missing \1"),
    (re.compile(r"\b(?:pass )?features="), "--features "),
    (re.compile(r"read it with (thousands|decimal)=('.')"), r"read it with --\1 \2"),
    (re.compile(r"\bsep=('[^']*')"), r"--sep \1"),
)


def told_plainly(function: F) -> F:
    """Show errors that users can cause as one line, with exit status 1; ``--debug`` shows the traceback.

    A warning is a line on standard error, without the place in the code. Ctrl-C has exit status 130.
    """

    @wraps(function)
    def told(*args: Any, **settings: Any) -> Any:
        debug = settings.pop("debug")
        shown = click.get_current_context().meta.setdefault(WARNED, [])

        def show(message: Warning | str, *place: Any, **file: Any) -> None:
            if str(message) not in shown:
                shown.append(str(message))
                say(settings.get("quiet", False), f"Warning: {as_options(str(message))}")

        try:
            with warnings.catch_warnings():
                if not debug:
                    warnings.showwarning = show
                    warnings.filterwarnings("always", category=UserWarning)
                return function(*args, **settings)
        except KeyboardInterrupt:
            kept = settings.get("checkpoint")
            goes_on = kept is not None and kept.exists()
            click.echo(f"Stopped{f'; use --resume to continue from {str(kept)!r}' if goes_on else '.'}", err=True)
            sys.exit(130)
        except BrokenPipeError:
            raise
        except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
            if debug:
                raise
            raise click.ClickException(as_options(str(error)) or type(error).__name__) from error

    return told  # type: ignore[return-value]


def as_options(message: str) -> str:
    """Return a message in which keyword arguments of Python are replaced by options of the command.

    Examples
    --------
    >>> as_options("level 'c' is new; on_unknown='mean' lets it pass")
    "level 'c' is new; --on-unknown mean lets it pass"
    >>> as_options("set on_unknown='mean' to use the average")
    'fit with --on-unknown mean to use the average'
    """
    for pattern, remedy in _REMEDIES:
        message = pattern.sub(remedy, message)
    return message


def say(quiet: bool, text: str) -> None:
    """Print a message for people on standard error."""
    if not quiet:
        click.echo(plain(text, lines=True), err=True)


def tell_notes(quiet: bool, notes: Iterable[dict[str, Any]]) -> None:
    """Print notes that weren't shown as warnings."""
    shown = click.get_current_context().meta.setdefault(WARNED, [])
    for note in notes:
        if note["message"] not in shown:
            shown.append(note["message"])
            say(quiet, f"Note: {as_options(note['message'])}")


def plain(text: str, *, lines: bool = False) -> str:
    """Return a text without control sequences of terminals."""
    from residmix.plots.style import visible

    return visible(text, kept="\n" if lines else "")


def _width(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _shortened(text: str, most: int = 40) -> str:
    """Return a name that is too long for a table with its middle left out."""
    text = plain(text)
    return text if len(text) <= most else f"{text[: most - 15]}...{text[-12:]}"


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table on standard output: the first `left` columns to the left, the others to the right."""
    cells = [[_shortened(str(cell)) for cell in row] for row in (headings, *rows)]
    widths = [max(_width(row[k]) for row in cells) for k in range(len(headings))]
    click.echo(title)
    for row in cells:
        padded = [
            cell + " " * (width - _width(cell)) if k < left else " " * (width - _width(cell)) + cell
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(padded).rstrip())
    click.echo()
