"""The package's own warnings, and the wording that errors share."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable

__all__ = [
    "BelowChanceWarning",
    "CollapsedScaleWarning",
    "CollinearityWarning",
    "DeadComponentWarning",
    "DesignWarning",
    "DiscreteTargetWarning",
    "EntangledEffectsWarning",
    "LeakageWarning",
    "ManyColumnsWarning",
    "MissingExtraError",
    "RareLevelWarning",
    "ResidmixWarning",
    "ScaleWarning",
    "did_you_mean",
    "require_extra",
    "warn",
]

# Whose frames may lie between a line of the user's and what it leads to.
_BETWEEN = frozenset({"residmix", "sklearn", "joblib", "torch"})


class ResidmixWarning(UserWarning):
    """Base class of everything that residmix warns about."""


class BelowChanceWarning(ResidmixWarning):
    """A held-out probe scores below chance, which in-sample residuals cause and which isn't perfect removal."""


class CollinearityWarning(ResidmixWarning):
    """Columns of the design are aliased, or what is removed and what is preserved can't be told apart."""


class EntangledEffectsWarning(CollinearityWarning):
    """What is removed and what is preserved are nearly collinear: the canonical correlation is above 0.95."""


class DesignWarning(ResidmixWarning):
    """The design asks much of the data, or is perhaps not what was meant."""


class ManyColumnsWarning(DesignWarning):
    """The design has more than half as many columns as there are rows."""


class RareLevelWarning(ResidmixWarning):
    """A level of a factor has too few rows for its effect to be estimated well."""


class LeakageWarning(ResidmixWarning):
    """Residuals let a learner read the metadata back."""


class DeadComponentWarning(ResidmixWarning):
    """A mixture component lost its rows and was re-seeded or could not be revived."""


class DiscreteTargetWarning(ResidmixWarning):
    """A density is asked of a target whose values repeat, where a density has no upper bound."""


class CollapsedScaleWarning(ResidmixWarning):
    """Many predicted standard deviations sit at their lower bound."""


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
    """
    close = difflib.get_close_matches(str(name), [str(item) for item in known], n=1, cutoff=0.5)
    return f" - did you mean {close[0]!r}?" if close else ""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called the package: the innermost one that is neither ours nor of a library between.

    How many frames lie between depends on the way taken (scikit-learn wraps methods, a Pipeline calls them), so a
    fixed number would point into a library.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def require_extra(module: str, extra: str, purpose: str) -> MissingExtraError:
    """Return the error to raise when `module`, part of `extra`, is needed for `purpose` and absent."""
    return MissingExtraError(
        f"{purpose} needs {module}, which is not installed; install it with: pip install 'residmix[{extra}]'"
    )
