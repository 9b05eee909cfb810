r"""Standard errors from the information matrix.

With s the scores of a row, the information is :math:`I(\theta) = \sum_i w_i E[s s']`, and standard errors are the
square roots of the diagonal of its inverse, transformed to the attributes of estimators by the delta method. The
expectation is over draws from the fitted mixture, so that no data are needed. Given rows, it is for normal components
Louis's observed information: that of the complete data less the part lost because the assignment is unknown:

.. math:: I(\theta) = I_{complete} - \sum_i w_i [\sum_k r_{ik} s_{ik} s_{ik}' - s_i s_i']

(Louis 1982, "Finding the observed information matrix when using the EM algorithm", J. R. Stat. Soc. B 44). With draws
instead of rows the second sum is an expectation, and 0 for separated components. With t components, missing values or a
gate, the sum of :math:`s_i s_i'` over the rows is used. For families whose covariances share parameters, the
complete-data information is that of rows with the fitted covariances.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from residmix.mixture.after.draws import drawn
from residmix.mixture.after.information_matrix.scores import Layout, block_scores
from residmix.mixture.after.information_matrix.tangents import half, tangents
from residmix.mixture.iteration.estep import Problem
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows

__all__ = ["MOST_PARAMETERS", "Information", "expected_information", "observed_information", "shown_errors"]

Floats = NDArray[np.float64]

# Parameters whose information is computed at most: a matrix of 288 MB.
MOST_PARAMETERS = 6_000
# Numbers that directions of factor-analytic covariances take at most.
LARGEST_MOVES = 50_000_000
# Draws, and draws for each parameter.
DRAWS = 20_000
EACH = 20
# Numbers in the scores of a block.
ENTRIES = 2_000_000
# Directions of less than this share of the information aren't determined by the data.
UNKNOWN = 1e-10
# Noise of fewer rows than this is at the edge of what is possible, where a standard error says nothing.
NO_NOISE = 1e-3


class Information:
    """Covariance matrix of the estimates, in the order of a layout.

    Attributes
    ----------
    params : MixtureParams
    layout : Layout
    directions : ndarray (K m, n) or None
    covariance : ndarray (P, P)
        NaN where the data don't determine a parameter.
    pull : ndarray (d, d)
        Information about a common shift of all components, per unit of weight.
    total : float
        Sum of weights.
    without_noise : bool
        Whether the mixture has noise of no rows, of which these parameters know nothing.
    unit : float
        What features are divided by here: means, and all else in their units, are to be multiplied by it.
    """

    def __init__(
        self,
        params: MixtureParams,
        layout: Layout,
        directions: Floats | None,
        information: Floats,
        total: float,
        without_noise: bool,
        unit: float,
    ) -> None:
        self.params, self.layout, self.directions, self.total = params, layout, directions, total
        self.without_noise, self.unit = without_noise, unit
        K, d = params.means.shape
        self.pull: Floats = information[layout.means, layout.means].reshape(K, d, K, d).sum(axis=(0, 2)) / total
        # differences of shares that are rounding aren't information, such as those of components that are alike
        least, of_weights = np.zeros(layout.size), layout.weights.stop - layout.weights.start
        shares = np.append(params.weights, 0.0 if params.noise is None else params.noise[0])[:of_weights]
        least[layout.weights] = UNKNOWN * total / shares if params.gate is None else 0.0
        self.covariance = _inverse(information, least)


def expected_information(params: MixtureParams, total: float) -> Information:
    """Return the expected information of a number of rows about the parameters of a mixture."""
    params, lacking = _off_the_edge(replace(params, coef=None, gate=None), total)
    n = int(np.clip(EACH * _size(params), DRAWS, 10 * DRAWS))
    X, labels = drawn(params, n)
    noise = 0.0 if params.noise is None else params.noise[0]
    shares = np.append(params.weights * (1 - noise), noise)
    weight = (total * shares / np.maximum(np.bincount(labels % (params.n_components + 1), minlength=len(shares)), 1))[
        labels
    ]
    found = observed_information(ArrayRows(X, weight=weight), params)
    found.without_noise |= lacking
    return found


def _off_the_edge(params: MixtureParams, n_rows: float) -> tuple[MixtureParams, bool]:
    """Return the mixture without noise of no rows; and whether there was such."""
    empty = np.flatnonzero(params.weights == 0.0)
    if empty.size:
        raise ValueError(f"components {empty.tolist()} have weight 0, so no row tells of them; leave them out")
    if params.noise is None or params.noise[0] * n_rows >= NO_NOISE:
        return params, False
    return replace(params, noise=None), True


def observed_information(rows: Rows, params: MixtureParams) -> Information:
    """Return the observed information of rows about a mixture fitted to them; on coefficients only with a gate."""
    if params.by_group is not None:
        raise ValueError("standard_errors doesn't work with covariance_by; use residmix.bootstrap")
    if params.by_component:
        raise ValueError("standard_errors doesn't work with effects='by-component'; use residmix.bootstrap")
    if params.trim is not None:
        raise ValueError("standard_errors doesn't work with trim; use residmix.bootstrap")
    params, lacking = _off_the_edge(params, rows.n_rows)
    unit = _unit(params)
    rows, params = rows.mapped(partial(_divided, unit)), _in_unit(params, unit)
    K, d, parts = params.n_components, params.n_features, params.parts
    if parts is not None and K**2 * d**3 * parts.shape[2] > LARGEST_MOVES:
        raise ValueError(
            f"standard_errors has too many parameters with loadings of {d} features and {K} components; "
            "use residmix.bootstrap"
        )
    directions = tangents(params.family, params.full_covariances(), parts)
    n_directions = params.n_components * len(half(params.n_features)[0]) if directions is None else directions.shape[1]
    coef = params.n_design if params.gate is not None else 0
    layout = Layout.of(params, n_directions, coef)
    if layout.size > MOST_PARAMETERS:
        raise ValueError(
            f"the information matrix of {layout.size} parameters is too large (at most {MOST_PARAMETERS}); use "
            "residmix.bootstrap"
        )
    louis = params.gate is None and params.dof is None and not params.missing
    step = partial(_sums, Problem.of(params, n_rows=rows.n_rows), layout, directions, louis)
    block_rows = int(np.clip(ENTRIES // max(layout.size, 1), 64, rows.block_rows))
    information, total, shares = rows.with_block_rows(block_rows).fold(step, _added)
    if louis:
        louis_information = _complete(params, layout, directions, shares) - information[1]
        values = np.linalg.eigvalsh(_scaled(louis_information)[0])
        information = louis_information if values[0] > UNKNOWN * values[-1] else information[0]
    else:
        information = information[0]
    return Information(params, layout, directions, information, total, lacking, unit)


def _unit(params: MixtureParams) -> float:
    """Return about the standard deviation of the features: a power of two, so that nothing is rounded.

    Information about a covariance is of the order of its inverse squared, which overflows in other units.
    """
    root = np.sqrt(params.weights @ np.diagonal(params.full_covariances(), axis1=1, axis2=2)).max()
    return float(np.exp2(np.round(np.log2(root))))


def _divided(unit: float, block: Block) -> Block:
    return replace(block, X=np.asarray(block.X, dtype=np.float64) / unit)


def _in_unit(params: MixtureParams, unit: float) -> MixtureParams:
    """Return the mixture of features divided by a unit."""
    return replace(
        params,
        means=params.means / unit,
        covariances=params.covariances / unit / unit,
        factors=params.factors * unit,
        coef=None if params.coef is None else params.coef / unit,
        noise=None if params.noise is None else (params.noise[0], params.noise[1] / unit),
        parts=None if params.parts is None else params.parts / unit,
    )


def _size(params: MixtureParams) -> int:
    K, d = params.means.shape
    return int(K * (1 + d) + params.family.n_parameters(K, d))


def _sums(
    problem: Problem, layout: Layout, directions: Floats | None, louis: bool, block: Block
) -> tuple[list[Floats], float, Floats]:
    """Return sums of s s' and of what it lacks of the complete data's, of weights and of shares."""
    scores, r = block_scores(problem, layout, directions, block)
    w = np.ones(len(r)) if block.weight is None else block.weight
    squares = (scores * w[:, None]).T @ scores
    found = [squares]
    if louis:
        found.append(_complete_squares(problem, layout, directions, block, r * w[:, None]) - squares)
    return found, float(w.sum()), (r * w[:, None]).sum(axis=0)


def _complete_squares(problem: Problem, layout: Layout, directions: Floats | None, block: Block, rw: Floats) -> Floats:
    """Return the sum over rows and components of r s_k s_k', s_k the scores if the row were of component k."""
    params = problem.params
    K, d = params.means.shape
    P, m = layout.size, len(half(d)[0])
    total = np.zeros((P, P))
    shares = np.eye(rw.shape[1])
    noise = 0.0 if params.noise is None else params.noise[0]
    weights = np.append(params.weights * (1 - noise), noise)[: rw.shape[1]]
    of_weights = shares[:, :-1] / weights[:-1] - shares[:, -1:] / weights[-1]
    rows, columns = half(d)
    twice = np.where(rows == columns, 0.5, 1.0)
    factors = params.full_factors()
    x = np.asarray(block.X, dtype=np.float64)
    if params.coef is not None:
        x = x - params.columns_of(block.design) @ params.coef
    for k in range(rw.shape[1]):
        own, places = np.empty((len(rw), 0)), np.empty(0, dtype=np.intp)
        if k < K:
            a = (x - params.means[k]) @ factors[k] @ factors[k].T
            flat = (a[:, rows] * a[:, columns] - (factors[k] @ factors[k].T)[rows, columns]) * twice
            at = np.arange(layout.covariances.start, layout.covariances.stop)
            if directions is None:
                at = at[k * m : (k + 1) * m]
            else:
                flat = flat @ directions[k * m : (k + 1) * m]
            own = np.hstack([a, flat])
            places = np.concatenate([np.arange(layout.means.start + k * d, layout.means.start + (k + 1) * d), at])
        own = np.hstack([np.broadcast_to(of_weights[k], (len(rw), len(of_weights[k]))), own])
        places = np.concatenate([np.arange(layout.weights.start, layout.weights.stop), places])
        total[np.ix_(places, places)] += (own * rw[:, k, None]).T @ own
    return total


def _added(one: Any, two: Any) -> Any:
    return [a + b for a, b in zip(one[0], two[0], strict=True)], one[1] + two[1], one[2] + two[2]


def _complete(params: MixtureParams, layout: Layout, directions: Floats | None, shares: Floats) -> Floats:
    """Return the information if assignments were known: that of normal samples of sizes `shares`."""
    K, d = params.means.shape
    found = np.zeros((layout.size, layout.size))
    total = shares.sum()
    weights = shares / total
    if len(shares) > 1:
        found[layout.weights, layout.weights] = total * (np.diag(1 / weights[:-1]) + 1 / weights[-1])
    rows, columns = half(d)
    twice, m = np.where(rows == columns, 1.0, 2.0), len(rows)
    factors = params.full_factors()
    spread = np.zeros((K, m, m))
    for k in range(K):
        inverse = factors[k] @ factors[k].T
        at = slice(layout.means.start + k * d, layout.means.start + (k + 1) * d)
        found[at, at] = shares[k] * inverse
        # tr(P V P W) / 2 for symmetric V and W given by their halves
        pairs = inverse[np.ix_(rows, rows)] * inverse[np.ix_(columns, columns)]
        pairs = pairs + inverse[np.ix_(rows, columns)] * inverse[np.ix_(columns, rows)]
        spread[k] = shares[k] * pairs * twice[:, None] * twice / 4
    if directions is None:
        for k in range(K):
            at = slice(layout.covariances.start + k * m, layout.covariances.start + (k + 1) * m)
            found[at, at] = spread[k]
    else:
        each = directions.reshape(K, m, -1)
        found[layout.covariances, layout.covariances] = np.einsum("kmi,kmn,knj->ij", each, spread, each)
    return found


def _scaled(information: Floats) -> tuple[Floats, Floats]:
    size = np.sqrt(np.maximum(np.diag(information), 0.0))
    size = np.where(size > 0, size, 1.0)
    return information / size[:, None] / size, size


def _inverse(information: Floats, least: Floats) -> Floats:
    """Return the inverse, NaN for what isn't known; less information than `least` (P,) is none."""
    if not len(information):
        return information
    none = np.diag(information) <= least
    scaled, size = _scaled(np.where(none | none[:, None], 0.0, information))
    values, vectors = np.linalg.eigh(scaled)
    known = values > UNKNOWN * values[-1]
    inverse: Floats = (vectors[:, known] / values[known]) @ vectors[:, known].T / size[:, None] / size
    lost = (np.abs(vectors[:, ~known]) > 1e-4).any(axis=1)
    inverse[lost] = inverse[:, lost] = np.nan
    return inverse


def shown_errors(found: Information) -> Bunch:
    """Return the standard errors of weights, means and covariances, shaped as estimators show them, and of tails."""
    params, layout, covariance = found.params, found.layout, found.covariance
    K, d = params.means.shape
    errors = Bunch()
    if params.gate is None:
        of_weights = covariance[layout.weights, layout.weights]
        last = np.sqrt(max(of_weights.sum(), 0.0)) if of_weights.size else 0.0
        all_weights = np.append(np.sqrt(np.diag(of_weights)), last)
        errors["weights"] = all_weights[:K]
        if params.noise is not None:
            errors["noise_weight"] = float(all_weights[K])
    elif params.noise is not None:
        errors["noise_weight"] = float(np.sqrt(covariance[0, 0]))
    if found.without_noise:
        errors["noise_weight"] = float("nan")
    errors["means"] = found.unit * np.sqrt(np.diag(covariance)[layout.means]).reshape(K, d)
    block = covariance[layout.covariances, layout.covariances]
    if found.directions is None:
        variances = np.diag(block)
    else:
        variances = np.einsum("ij,jk,ik->i", found.directions, block, found.directions)
    rows, columns = half(d)
    matrices = np.empty((K, d, d))
    matrices[:, rows, columns] = matrices[:, columns, rows] = np.sqrt(np.maximum(variances, 0.0)).reshape(K, -1)
    errors["covariances"] = found.unit * (found.unit * _kept(params, matrices))
    if params.dof is not None:
        errors["dof"] = np.sqrt(np.diag(covariance)[layout.dof])
    return errors


def _kept(params: MixtureParams, matrices: Floats) -> Floats:
    """Return (K, d, d) in the shape that the family keeps."""
    of = params.family
    if of.matrices:
        return matrices if of.kept[0] == "K" else matrices[0]
    variances = np.diagonal(matrices, axis1=1, axis2=2)
    return np.array(variances if of.kept[-1] == "d" else variances[:, 0])
