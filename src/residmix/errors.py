"""Warnings and errors of the package, the notes that a fit keeps, and shared checks."""

from __future__ import annotations

import difflib
import functools
import math
import numbers
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = [
    "BelowChanceWarning",
    "CertificateWarning",
    "CollapsedScaleWarning",
    "CollinearityWarning",
    "DeadComponentWarning",
    "DegenerateComponentWarning",
    "DesignWarning",
    "DiscreteTargetWarning",
    "EntangledEffectsWarning",
    "LeakageWarning",
    "ManyColumnsWarning",
    "MissingCodeWarning",
    "MissingExtraError",
    "Note",
    "RareLevelWarning",
    "ResidmixWarning",
    "ScaleWarning",
    "check_arguments",
    "check_number",
    "did_you_mean",
    "keeps_notes",
    "note",
    "noting",
    "require_extra",
    "unnoted",
    "warn",
    "warn_once",
]

F = TypeVar("F", bound=Callable[..., Any])

# One thing that a fit has to tell: {"kind": ..., "message": ..., "figures": {...}}, plain values only.
Note = dict[str, Any]

# Whose frames may lie between a line of the user's and what it leads to.
_BETWEEN = frozenset({"residmix", "contextlib", "sklearn", "joblib", "torch"})


class ResidmixWarning(UserWarning):
    """Base class of all warnings of residmix."""


class BelowChanceWarning(ResidmixWarning):
    """A held-out probe scores below chance: an artefact of in-sample residuals, not a sign of perfect removal."""


class CollinearityWarning(ResidmixWarning):
    """Columns of the design are aliased (linearly dependent)."""


class EntangledEffectsWarning(CollinearityWarning):
    """Removed and preserved effects are nearly collinear: the canonical correlation is above 0.95."""


class DesignWarning(ResidmixWarning):
    """The design may not be what was meant, or is hard to estimate from the data."""


class ManyColumnsWarning(DesignWarning):
    """The design has more than half as many columns as there are rows."""


class RareLevelWarning(ResidmixWarning):
    """A level of a factor has too few rows for its effect to be estimated well."""


class LeakageWarning(ResidmixWarning):
    """A decision tree can predict the metadata from the residuals."""


class CertificateWarning(ResidmixWarning):
    """An `Eraser` fails its check on held-out rows."""


class DeadComponentWarning(ResidmixWarning):
    """A mixture component lost all its rows, and was re-seeded or dropped."""


class DegenerateComponentWarning(ResidmixWarning):
    """A mixture component sits on a few nearly equal rows, where the likelihood is unbounded."""


class MissingCodeWarning(ResidmixWarning):
    """A value repeats far outside all others (perhaps a code for missing values), or its square overflows."""


class DiscreteTargetWarning(ResidmixWarning):
    """A density is fitted to a target with repeated values, where densities are unbounded."""


class CollapsedScaleWarning(ResidmixWarning):
    """Many predicted standard deviations are at their lower bound."""


class ScaleWarning(ResidmixWarning):
    """An absolute setting, such as `reg_covar`, is out of proportion to the data's units."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" - did you mean 'site'?"``, or nothing when no known name is close.

    Examples
    --------
    >>> "unknown column 'sight'" + did_you_mean("sight", ["site", "age"])
    "unknown column 'sight' - did you mean 'site'?"
    >>> did_you_mean("v0", ["v10", "v00", "v01"])
    " - did you mean 'v00'?"
    """
    names = [str(item) for item in known]
    # what was typed begins one: "v0" means "v00", not "v30", which is as close by letters
    begun = [own for own in names if str(name) and own.lower().startswith(str(name).lower())]
    close = begun[:1] or difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f" - did you mean {close[0]!r}?" if close else ""


# The lists that notes go to: one for each fit under way, a fit within a fit last. None where nobody listens.
_LISTENING: ContextVar[tuple[list[Note], ...]] = ContextVar("residmix_notes", default=())


def warn(message: str, category: type[Warning], *, kind: str | None = None, **figures: Any) -> None:
    """Warn at the line that called the package, and keep the message as a note of the current fit.

    The warning points at the innermost line that is in neither this package nor a library. A fixed stacklevel would
    point into a library, since scikit-learn wraps methods and a Pipeline calls them.

    Parameters
    ----------
    message : str
    category : type
    kind : str, optional
        Of the note. Default: the category's name without "Warning", in small letters with hyphens.
    **figures
        Numbers and names in the message, as plain values.
    """
    if kind is None:
        kind = re.sub(r"(?<!^)(?=[A-Z])", "-", category.__name__.removesuffix("Warning")).lower()
    note(kind, message, **figures)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


_ONCE: set[str] = set()
_LOCK = threading.Lock()


def warn_once(message: str, category: type[Warning], *, kind: str) -> None:
    """Warn, but only once per kind and process, also with several threads."""
    with _LOCK:
        if kind in _ONCE:
            return
        _ONCE.add(kind)
    warn(message, category, kind=kind)


def note(kind: str, message: str, **figures: Any) -> None:
    """Add a note to the current fit, without a warning; repeated notes are left out."""
    told = {"kind": kind, "message": message, "figures": figures}
    for notes in _LISTENING.get():
        if all(told["message"] != other["message"] for other in notes):
            notes.append(told)


@contextmanager
def noting() -> Iterator[list[Note]]:
    """Collect the notes made inside the block; outer collectors get them as well."""
    found: list[Note] = []
    token = _LISTENING.set((*_LISTENING.get(), found))
    try:
        yield found
    finally:
        _LISTENING.reset(token)


@contextmanager
def unnoted(category: type[Warning] = Warning) -> Iterator[None]:
    """Suppress warnings and notes of an inner fit: of a fold, a refit, a start that isn't kept."""
    token = _LISTENING.set(())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category)
            yield
    finally:
        _LISTENING.reset(token)


def keeps_notes(method: F) -> F:
    """Give an estimator `notes_`: a list of the notes of its fit.

    Methods whose name begins with "fit" begin a new list; others (`partial_fit`, `merge`, `adapt`) add to it.
    """

    @functools.wraps(method)
    def fitted(self: Any, *args: Any, **kwargs: Any) -> Any:
        with noting() as found:
            result = method(self, *args, **kwargs)
        earlier = [] if method.__name__.startswith("fit") else getattr(self, "notes_", [])
        known = {told["message"] for told in earlier}
        self.notes_ = earlier + [told for told in found if told["message"] not in known]
        return result

    return fitted  # type: ignore[return-value]


def require_extra(module: str, extra: str, purpose: str) -> MissingExtraError:
    """Return the error to raise when `module`, part of `extra`, is needed for `purpose` and absent."""
    return MissingExtraError(
        f"{purpose} needs {module}, which is not installed; install it with: pip install 'residmix[{extra}]'"
    )


def check_arguments(caller: str, **arguments: tuple[list[Any], Any]) -> None:
    """Raise unless each argument, given as (constraints, value), satisfies scikit-learn's constraints.

    For functions and methods. Estimators use `_parameter_constraints`, with the same error texts.

    Examples
    --------
    >>> from numbers import Integral
    >>> from sklearn.utils._param_validation import Interval
    >>> check_arguments("sample", n_samples=([Interval(Integral, 1, None, closed="left")], 0))
    Traceback (most recent call last):
        ...
    sklearn.utils._param_validation.InvalidParameterError: The 'n_samples' parameter of sample must be an int in the \
range [1, inf). Got 0 instead.
    """
    from sklearn.utils._param_validation import validate_parameter_constraints

    constraints = {name: allowed for name, (allowed, _) in arguments.items()}
    validate_parameter_constraints(constraints, {name: value for name, (_, value) in arguments.items()}, caller)


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    integral: bool = False,
    above: bool = False,
) -> None:
    """Raise unless `value` is a number with ``low <= value``, or ``low < value`` when `above`.

    For values inside a parameter, such as a width in a list, which scikit-learn's constraints don't check.

    Raises
    ------
    TypeError
        If it isn't a number, or isn't whole although `integral` is set.
    ValueError
        If it is out of range, or not finite.

    Examples
    --------
    >>> check_number("alpha", -1.0, low=0)
    Traceback (most recent call last):
        ...
    ValueError: alpha must be at least 0, not -1.0
    """
    kind = numbers.Integral if integral else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be a {'whole ' if integral else ''}number, not {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    if number < low or (above and number == low):
        raise ValueError(f"{name} must be {'more than' if above else 'at least'} {low:g}, not {value!r}")
