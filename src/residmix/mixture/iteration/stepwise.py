"""A step of stepwise EM: the moments of a stream, of which old batches are forgotten slowly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from residmix.mixture.iteration.estep import MixtureMoments
from residmix.mixture.iteration.mstep import m_step
from residmix.mixture.params import MixtureParams
from residmix.mixture.robust.tails import as_normal

__all__ = ["stepwise"]


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
    told = moments
    if moments.tails is not None:
        moments = as_normal(moments)
        if of.diagonal:
            moments.scatter = np.array(np.diagonal(moments.scatter, axis1=1, axis2=2))
        elif of.shared:
            moments.scatter = moments.scatter.sum(axis=0)
    part = share / moments.total
    blended = MixtureMoments(
        (1 - share) * weights + part * moments.weight,
        part * moments.shift,
        (1 - share) * scatter + part * moments.scatter,
        moments.log_likelihood,
        1.0,
        n_rows,
    )
    following = m_step(blended, params, reg_covar=reg_covar)
    if told.tails is None:
        return following
    noise = params.noise
    if noise is not None:
        noise = ((1 - share) * noise[0] + part * told.tails.noise, noise[1])
    return replace(following, noise=noise, dof=params.dof, missing=params.missing)
