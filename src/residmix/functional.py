"""The main task in one call: arrays in, a dictionary of arrays out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array

from residmix.mixture.families.family import family
from residmix.mixture.gaussian import GaussianMixture
from residmix.removal.residualizer import Residualizer
from residmix.sources.frames import refuse_other_order

__all__ = ["mdn_residualize"]


def mdn_residualize(
    X: Any,
    metadata: Any,
    n_components: int = 3,
    *,
    means_init: ArrayLike | None = None,
    weights_init: ArrayLike | None = None,
    precisions_init: ArrayLike | None = None,
    max_iter: int = 1000,
    tol: float = 1e-6,
    reg_covar: float = 1e-6,
    covariance_type: str = "full",
    n_init: int = 1,
    init_params: str = "short-em",
    random_state: Any = None,
    return_responsibilities: bool = False,
) -> dict[str, Any]:
    r"""Remove metadata from features by least squares; model the residuals as a mixture of Gaussians.

    .. math::

        [M\; 1]\,\beta \approx X, \qquad R = X - [M\; 1]\,\beta, \qquad
        R_i \sim \sum_k \pi_k N(\mu_k, \Sigma_k)

    This is the two-stage estimate. If metadata and clusters are correlated, it removes part of the clusters with the
    metadata; :class:`residmix.ResidualMixture` with ``estimation="joint"`` and ``gating="metadata"`` doesn't.

    Parameters
    ----------
    X : array-like (n, d)
        Features.
    metadata : array-like (n,) or (n, p), or data frame
        What to remove. Text and category columns of a frame become one column per level but the first.
    n_components : int
        K.
    means_init, weights_init, precisions_init : array-like (K, d), (K,), (K, d, d), optional
        Where EM starts. With all three given, ``tol=0`` and `max_iter` iterations, this is textbook EM.
    max_iter, tol, reg_covar, covariance_type, n_init, init_params, random_state
        As in :class:`residmix.GaussianMixture`. `reg_covar` is in squared units of X.
    return_responsibilities : bool
        Also return the (n, K) posterior probabilities.

    Returns
    -------
    dict
        - ``beta`` (p + 1, d): coefficients, the intercept last; the minimum-norm solution if the columns are collinear;
        - ``residual`` (n, d), in the units of X and centred;
        - ``pi`` (K,), ``mu`` (K, d), ``sigma`` (K, d, d): weights, means, covariances (full matrices for every
          covariance type);
        - ``log_likelihood``: sum over rows of the log density of the residual under them;
        - ``n_iter``, ``converged``;
        - ``responsibilities`` (n, K), if asked for.

    Raises
    ------
    ValueError, TypeError
        For NaN, infinities, wrong shapes, fewer rows than components, and the like.

    Examples
    --------
    >>> import numpy as np
    >>> import residmix as rm
    >>> rng = np.random.default_rng(0)
    >>> age, group = rng.uniform(20, 80, 300), rng.integers(0, 2, 300)
    >>> X = 0.3 * age[:, None] + 4.0 * group[:, None] * [1, -1] + rng.normal(size=(300, 2))
    >>> found = rm.mdn_residualize(X, age, n_components=2, random_state=0)
    >>> found["beta"].shape, found["sigma"].shape
    ((2, 2), (2, 2, 2))
    >>> bool(np.abs(found["pi"] - 0.5).max() < 0.05)
    True
    """
    refuse_other_order(X, metadata, "metadata")
    X = check_array(X, dtype=[np.float64, np.float32], input_name="X")
    residualizer = Residualizer()
    residual = np.asarray(residualizer.fit_transform(X, metadata=metadata))
    mixture = GaussianMixture(
        n_components,
        covariance_type=covariance_type,
        tol=tol,
        reg_covar=reg_covar,
        max_iter=max_iter,
        n_init=n_init,
        init_params=init_params,
        means_init=means_init,
        weights_init=weights_init,
        precisions_init=precisions_init,
        random_state=random_state,
    )
    with warnings.catch_warnings():
        if tol == 0:  # a number of iterations was asked for, not convergence
            warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(residual)
    found = {
        "beta": np.vstack(residualizer.fit_.of_least_norm()),
        "residual": residual,
        "pi": mixture.weights_,
        "mu": mixture.means_,
        "sigma": np.array(family(covariance_type).full(mixture.covariances_, *mixture.means_.shape)),
        "log_likelihood": float(mixture.lower_bound_) * len(residual),
        "n_iter": int(mixture.n_iter_),
        "converged": bool(mixture.converged_),
    }
    if return_responsibilities:
        found["responsibilities"] = mixture.predict_proba(residual)
    return found
