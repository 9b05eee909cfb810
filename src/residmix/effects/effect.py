"""Effect: how what the metadata explain is estimated, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from residmix.design.design import Design
from residmix.effects.removal import LinearRemoval
from residmix.moments.equations import Equations
from residmix.rows.rows import Rows

__all__ = ["Effect", "need_dense"]


class Effect(Protocol):
    """How effects are estimated. A frozen value, which can be compared and printed.

    Attributes
    ----------
    exact_loo : bool
        Whether the fit tells the residual of each row by the fit of all others.
    columns_up_to : int
        Levels of a factor up to which it wants a column for each; beyond, they are absorbed.
    """

    @property
    def exact_loo(self) -> bool: ...

    @property
    def columns_up_to(self) -> int: ...

    def check(self, design: Design) -> None:
        """Raise ValueError for a design that it can't be used with."""

    def merges(self, design: Design) -> bool:
        """Tell whether moments are enough, so that a fit goes on with further rows and merges with others."""

    def equations(self, design: Design) -> Equations:
        """Return what moments it needs, and how these add up."""

    def estimate(
        self, moments: Any, design: Design, features: Sequence[Any], rows: Rows | None = None
    ) -> LinearRemoval:
        """Estimate from moments, and from the rows that these are of where it doesn't merge.

        Rows are also read again where accuracy asks for it. The names of the features are for warnings.
        """


def need_dense(design: Design) -> None:
    """Raise ValueError for absorbed factors, whose levels have no columns."""
    if design.factors:
        raise ValueError(
            f"scale= and shrinkage='eb' need the levels of {design.factors[0].name!r} as columns, but there are "
            f"{len(design.factors[0].levels)} of them; remove such a factor's mean effect only"
        )
