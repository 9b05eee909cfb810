"""EM started with an M-step for given labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array, column_or_1d

from residmix.mixture.families.family import family
from residmix.mixture.families.restraint import Restraint
from residmix.mixture.iteration.estep import MixtureMoments
from residmix.mixture.iteration.mstep import covariances_from_scatter, m_step
from residmix.mixture.iteration.step import with_prior_rows
from residmix.mixture.params import MixtureParams, make_params
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["check_labels", "moments_of_labels", "params_of_labels"]

Floats = NDArray[np.float64]


def check_labels(labels: Any, n_rows: int, n_components: int) -> NDArray[np.intp]:
    """Return labels as numbers from 0 in sorted order; raise unless there is one per row and `n_components` in all."""
    given = column_or_1d(check_array(labels, ensure_2d=False, dtype=None, input_name="labels_init"))
    if len(given) != n_rows:
        raise ValueError(f"labels_init must have one label for each of the {n_rows} rows, but has {len(given)}")
    known, numbers = np.unique(given, return_inverse=True)
    if len(known) != n_components:
        shown = ", ".join(str(label) for label in known[:10]) + (", ..." if len(known) > 10 else "")
        raise ValueError(
            f"labels_init must have n_components={n_components} distinct labels, but has {len(known)} ({shown})"
        )
    return numbers.astype(np.intp)


def params_of_labels(
    rows: Rows,
    labels: NDArray[np.intp],
    n_components: int,
    *,
    covariance_type: str,
    reg_covar: float,
    restraint: Restraint | None = None,
) -> MixtureParams:
    """Return proportions, means and covariances of the labelled rows.

    A `restraint` is obeyed.

    Raises
    ------
    ValueError
        If all rows of a label have weight 0.
    SingularCovarianceError
        If the rows of a label don't span the space although the family needs it, and `reg_covar` is 0.
    """
    found, centres = moments_of_labels(rows, labels, n_components)
    if restraint is not None and restraint.prior is not None:
        return _posterior(found, centres, covariance_type, reg_covar, restraint)
    means = centres + found.shift / found.weight[:, None]
    covariances, parts = covariances_from_scatter(found.scatter, found.shift, found.weight, covariance_type, reg_covar)
    return make_params(found.weight / found.weight.sum(), means, covariances, covariance_type, parts)


def moments_of_labels(rows: Rows, labels: NDArray[np.intp], n_components: int) -> tuple[MixtureMoments, Floats]:
    """Return the moments of the labelled rows about centres near their means, and these (K, d).

    Raises
    ------
    ValueError
        If all rows of a label have weight 0.
    """
    total = np.average(np.asarray(rows.take(np.arange(1)).X, dtype=np.float64), axis=0)
    centres = np.repeat(total[None], n_components, axis=0)
    for again in range(2):  # about any row first, then about the means, so that an offset costs no digits
        moments = fold(rows, partial(_labelled, labels, centres), MixtureMoments.merge)
        if not (moments.weight > 0).all():
            empty = np.flatnonzero(moments.weight == 0).tolist()
            raise ValueError(
                f"labels_init: all rows of the labels at positions {empty} (in sorted order) have "
                "weight 0; leave these labels out"
            )
        if again == 0:
            centres = centres + moments.shift / moments.weight[:, None]
    return moments, centres


def _posterior(
    found: MixtureMoments, about: Floats, covariance_type: str, reg_covar: float, restraint: Restraint
) -> MixtureParams:
    """Return the M-step's answer to moments about some centres, where there's a prior."""
    K, d = about.shape
    of = family(covariance_type)
    unit = of.fit(of.of_full(np.repeat(np.eye(d)[None], K, axis=0), found.weight), found.weight)
    begin = replace(make_params(np.full(K, 1 / K), about, unit, covariance_type), restraint=restraint, parts=None)
    assert restraint.prior is not None
    return m_step(with_prior_rows(found, begin, restraint.prior), begin, reg_covar=reg_covar, revive=False)


def _labelled(labels: NDArray[np.intp], centres: Floats, block: Block) -> MixtureMoments:
    """Return the moments of a block whose rows belong to one component each."""
    K, d = centres.shape
    mine = labels[block.start : block.start + block.n_rows]
    weight = np.ones(block.n_rows) if block.weight is None else block.weight
    away = np.asarray(block.X, dtype=np.float64) - centres[mine]
    scatter = np.zeros((K, d, d))
    shift = np.zeros((K, d))
    for k in range(K):
        own = away[mine == k]
        weighted = own * weight[mine == k, None]
        shift[k], scatter[k] = weighted.sum(axis=0), weighted.T @ own
    mass = np.asarray(np.bincount(mine, weight, minlength=K), dtype=np.float64)
    return MixtureMoments(mass, shift, scatter, 0.0, float(weight.sum()), int(np.count_nonzero(weight)))
