"""One EM iteration of a Gaussian mixture over rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from residmix.families import MixtureParams, dead_components, m_step
from residmix.moments.kernels import MixtureMoments, MixtureStep
from residmix.rows.rows import Rows, fold

__all__ = ["MixtureEM", "overwhelmed_columns"]

# A component that died this often in one fit stays dead: there's no room for it.
MAX_REVIVALS = 5


@dataclass
class MixtureEM:
    """One EM iteration over rows: the `step` that `residmix.em.run_em` asks for."""

    rows: Rows
    reg_covar: float
    revived: list[list[int]] = field(default_factory=list)

    def __call__(self, params: MixtureParams) -> tuple[float, MixtureParams]:
        moments = fold(self.rows, MixtureStep(params), MixtureMoments.merge)
        dead = dead_components(moments)
        revive = len(self.revived) < MAX_REVIVALS
        if dead.any() and revive:
            self.revived.append(np.flatnonzero(dead).tolist())
        following = m_step(moments, params, reg_covar=self.reg_covar, revive=revive)
        return moments.log_likelihood / moments.total, following

    def evaluate(self, params: MixtureParams) -> float:
        """Return the log-likelihood per row."""
        moments = fold(self.rows, MixtureStep(params, with_moments=False), MixtureMoments.merge)
        return moments.log_likelihood / moments.total


def overwhelmed_columns(rows: Rows, reg_covar: float) -> NDArray[np.intp]:
    """Return the columns whose variance, on a thousand rows, is mostly `reg_covar`; constant ones don't count."""
    x = np.asarray(rows.take(np.arange(0, rows.n_rows, max(1, rows.n_rows // 1000))).X, dtype=np.float64)
    variance = x.var(axis=0)
    constant = variance <= (1e-12 * x.mean(axis=0)) ** 2
    return np.flatnonzero(~constant & (variance < 10 * reg_covar))
