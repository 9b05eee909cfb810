"""Effect: the protocol of all ways to estimate the effects of a design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from residmix.design.design import Design
from residmix.effects.removal import LinearRemoval
from residmix.moments.equations import Equations
from residmix.rows.rows import Rows

__all__ = ["Effect", "need_dense"]


class Effect(Protocol):
    """A way to estimate effects: a frozen value, which can be compared and printed.

    Attributes
    ----------
    exact_loo : bool
        Whether leave-one-out residuals follow exactly from one fit.
    columns_up_to : int
        A factor with at most so many levels gets a column for each; above, it is absorbed.
    """

    @property
    def exact_loo(self) -> bool: ...

    @property
    def columns_up_to(self) -> int: ...

    def check(self, design: Design) -> None:
        """Raise ValueError for a design that it can't be used with."""

    def merges(self, design: Design) -> bool:
        """Tell whether moments are enough, so that partial_fit and merge are possible."""

    def equations(self, design: Design) -> Equations:
        """Return the equations: which moments are needed, and how they are summed."""

    def estimate(
        self, moments: Any, design: Design, features: Sequence[Any], rows: Rows | None = None
    ) -> LinearRemoval:
        """Estimate from moments, and, where it doesn't merge, from the rows themselves.

        Rows are also read again where more accuracy is needed. The names of the features are for warnings.
        """


def need_dense(design: Design) -> None:
    """Raise ValueError for absorbed factors, whose levels have no columns."""
    if design.factors:
        raise ValueError(
            f"scale= and shrinkage='eb' need a column for each level, but {design.factors[0].name!r} has too many "
            f"levels ({len(design.factors[0].levels)}); leave scale= and shrinkage= out, or merge levels"
        )
