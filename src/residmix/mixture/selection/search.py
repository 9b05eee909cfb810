r"""Candidates, their criteria, and the best of them.

.. math:: BIC = -2 \log L + p \log n, \qquad ICL = BIC + 2 \textstyle\sum_i w_i H_i, \qquad AIC = -2 \log L + 2 p

with p free parameters, n the sum of the weights and :math:`H_i` the entropy of a row's shares (Schwarz 1978; Biernacki,
Celeux & Govaert 2000; Akaike 1974): lower is better.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.em.loop import EMState
from residmix.mixture.density import entropies
from residmix.mixture.families.family import family
from residmix.mixture.iteration.estep import Problem
from residmix.mixture.iteration.step import block_log_joint
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["Candidate", "doubt", "held_out", "is_spike", "table"]

Floats = NDArray[np.float64]

# A component is a spike if its least variance is below this share of what it is within components on average.
SPIKE = 1e-5


@dataclass(frozen=True)
class Candidate:
    """A mixture that was tried.

    Attributes
    ----------
    n_components, covariance_type
        Which.
    state : EMState or None
        How its fit ended; None if it failed.
    n_parameters : int
    total : float
        Sum of the weights.
    doubt : float
        Sum of the entropies of the rows' shares.
    held_out : float or None
        Cross-validated log-likelihood.
    spike : bool
        Whether a component sits on a few rows.
    revived : tuple
        Components that died and were seeded anew.
    log_prior : float
        Of its parameters, a part of what its fit maximised.
    """

    n_components: int
    covariance_type: str
    state: EMState[MixtureParams] | None
    n_parameters: int
    total: float
    doubt: float = 0.0
    held_out: float | None = None
    spike: bool = False
    revived: tuple[list[int], ...] = ()
    log_prior: float = 0.0

    @property
    def log_likelihood(self) -> float:
        return -math.inf if self.state is None else self.state.log_likelihood * self.total - self.log_prior

    def value(self, criterion: str) -> float:
        """Return a criterion; infinite for what must not be chosen."""
        if self.state is None or self.spike:
            return math.inf
        if criterion == "cv":
            return math.inf if self.held_out is None else -2 * self.held_out
        if criterion == "aic":
            return -2 * self.log_likelihood + 2 * self.n_parameters
        bic = -2 * self.log_likelihood + self.n_parameters * math.log(self.total)
        return bic + 2 * self.doubt if criterion == "icl" else bic


def table(tried: list[Candidate]) -> dict[str, list[Any]]:
    """Return the candidates as columns, with mclust's names of families."""
    columns: dict[str, list[Any]] = {
        "covariance_type": [family(one.covariance_type).name for one in tried],
        "n_components": [one.n_components for one in tried],
        "log_likelihood": [one.log_likelihood for one in tried],
        "n_parameters": [one.n_parameters for one in tried],
        **{name: [one.value(name) for one in tried] for name in ("bic", "icl", "aic")},
        "converged": [one.state is not None and one.state.converged for one in tried],
    }
    if any(one.held_out is not None for one in tried):
        columns["cv"] = [one.value("cv") for one in tried]
    return columns


def is_spike(params: MixtureParams, total: float) -> bool:
    """Tell whether a component sits on fewer rows than its covariance needs, or on rows that are all but equal.

    The likelihood has no upper bound there (Day 1969, Biometrika 56), so that every criterion would choose it. Equal
    means: some direction has less than 1e-5 of the variance that it has within components on average.
    """
    of = params.family
    if of.shared or params.n_components == 1:
        return False
    full = params.full_covariances()
    if not of.isotropic and (params.weights * total).min() < of.rows_needed(params.n_features):
        return True
    pooled = np.linalg.cholesky(np.tensordot(params.weights, full, 1))
    whitened = np.linalg.solve(pooled, np.linalg.solve(pooled, full).swapaxes(1, 2))
    return bool(np.linalg.eigvalsh(whitened).min() < SPIKE)


def doubt(rows: Rows, params: MixtureParams, errors: Floats | None = None) -> float:
    """Return the (weighted) sum of the entropies of the rows' shares; `errors` as for `MixtureEM`."""
    return float(rows.fold(partial(_doubt, Problem.of(params, n_rows=rows.n_rows), errors), operator.add))


def _doubt(problem: Problem, errors: Floats | None, block: Block) -> float:
    entropy = entropies(block_log_joint(problem, block, errors))
    return float(entropy.sum() if block.weight is None else block.weight @ entropy)


def held_out(rows: Rows, fold: int, n_folds: int) -> tuple[Rows, Rows]:
    """Return rows without those of a fold, which have weight 0, and rows with those alone: every `n_folds`-th."""
    return rows.mapped(partial(_masked, fold, n_folds, False)), rows.mapped(partial(_masked, fold, n_folds, True))


def _masked(fold: int, n_folds: int, inside: bool, block: Block) -> Block:
    mine = (np.arange(block.start, block.start + block.n_rows) % n_folds == fold) == inside
    return replace(block, weight=mine.astype(float) if block.weight is None else block.weight * mine)
