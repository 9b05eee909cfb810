"""Stepwise EM: parameters that follow a stream of batches which are never seen again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.families import MixtureParams, m_step
from residmix.moments.kernels import MixtureMoments

__all__ = ["stepwise"]

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
    kind, weights, (K, d) = params.covariance_type, params.weights, params.means.shape
    if kind == "full":
        scatter = weights[:, None, None] * (params.covariances - reg_covar * np.eye(d))
    elif kind == "tied":
        scatter = params.covariances - reg_covar * np.eye(d)
    else:
        variances = params.covariances.reshape(K, -1) - reg_covar
        scatter = weights[:, None] * np.broadcast_to(np.maximum(variances, 0.0), (K, d))
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
