"""One EM iteration of a Gaussian mixture over rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.estep import MixtureMoments, MixtureStep
from residmix.mixture.mstep import dead_components, m_step
from residmix.mixture.params import MixtureParams
from residmix.rows.rows import Rows, fold

__all__ = ["Floats", "MixtureEM", "overwhelmed_columns", "stepwise"]

# A component that died this often in one fit stays dead: there's no room for it.
MAX_REVIVALS = 5


@dataclass
class MixtureEM:
    """One EM iteration over rows: the `step` that `residmix.em.loop.run_em` asks for."""

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


Floats = NDArray[np.float64]


def stepwise(
    params: MixtureParams, moments: MixtureMoments, share: float, *, reg_covar: float, n_rows: int
) -> MixtureParams:
    r"""Return the parameters whose expected moments are a mean of the old ones and a batch's.

    .. math:: s \leftarrow (1 - \gamma) s + \gamma \hat s(batch; \theta), \quad \theta = M(s)

    The old moments need no memory of their own. By component they are :math:`\pi_k`, 0 and
    :math:`\pi_k (\Sigma_k - reg)` about the current mean, the point that the batch's moments are taken about, too:
    they add up without cancellation.

    Parameters
    ----------
    params : MixtureParams
    moments : MixtureMoments
        Of the batch, at `params`.
    share : float
        :math:`\gamma`, between 0 and 1.
    reg_covar : float
        What every M-step adds to the diagonals of the covariances.
    n_rows : int
        Rows seen in all; components of less than 1e-8 of a row are re-seeded.

    References
    ----------
    Cappe and Moulines, "On-line expectation-maximization algorithm for latent data models", J. R. Stat. Soc. B 71
    (2009).
    """
    of, weights = params.family, params.weights
    before = of.moments_of(params.covariances)
    if of.diagonal:
        scatter = weights[:, None] * np.broadcast_to(np.maximum(before - reg_covar, 0.0), params.means.shape)
    else:
        scatter = before - reg_covar * np.eye(params.n_features)
        scatter = scatter[0] if of.shared else weights[:, None, None] * scatter
    part = share / moments.total
    blended = MixtureMoments(
        (1 - share) * weights + part * moments.weight,
        part * moments.shift,
        (1 - share) * scatter + part * moments.scatter,
        moments.log_likelihood,
        1.0,
        n_rows,
    )
    return m_step(blended, params, reg_covar=reg_covar)
