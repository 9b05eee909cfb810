"""What starts are looked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from residmix.conditional.coordinates import Widths

__all__ = ["Sought"]


@dataclass(frozen=True)
class Sought:
    """What starts are looked for, and where random numbers come from.

    Attributes
    ----------
    n_components : int
    covariance_type : str
    reg_covar : float
    gated : bool
        Whether mixing weights depend on the metadata.
    widths : Widths
        Columns of the orthonormal design that gate and effects have.
    random_state : RandomState
    """

    n_components: int
    covariance_type: str
    reg_covar: float
    gated: bool
    widths: Widths
    random_state: np.random.RandomState
