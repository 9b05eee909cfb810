"""Predictions, intervals, draws and scores of an estimator that predicts mixtures of Gaussians."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from residmix.errors import check_arguments
from residmix.nn.density import scores
from residmix.nn.density.distribution import MixtureOfGaussians
from residmix.nn.regressor.training import rng_scope
from residmix.rows.checks import check_weight

__all__ = ["PredictiveDensity", "check_targets"]

Array = NDArray[np.float64]
OUTPUTS = ("mean", "median", "mode", "quantiles")


def check_targets(y: Any, n_targets: int | None = None) -> Array:
    """Targets as float64 (n, D). NaN passes where there are several targets, as "not observed".

    Raises
    ------
    ValueError
        If `y` is None, not numeric, infinite, has more than two dimensions, or not `n_targets` columns.
    """
    if y is None:
        raise ValueError(
            "MDNRegressor requires y to be passed, but the target y is None: expected array-like (array or non-string "
            "sequence), got None. y should be a 1d array, or 2d for several targets"
        )
    if (kind := np.asarray(y).dtype).kind in "cmM":
        raise ValueError(f"y must be real numbers, not {kind}")
    try:
        values = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must be numbers: {error}") from None
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(f"y must have shape (n,) or (n, targets), got {values.shape}")
    if n_targets is not None and values.shape[1] != n_targets:
        raise ValueError(f"y has {values.shape[1]} targets, but had {n_targets} in fit")
    wrong = np.isinf(values) if values.shape[1] > 1 else ~np.isfinite(values)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        found = values[row, column]
        raise ValueError(
            f"Input y contains {'NaN' if np.isnan(found) else 'infinity'} (row {row}, target {column}); leave such "
            "rows out (NaN is allowed only with several targets)"
        )
    return values


class PredictiveDensity(ABC):
    """Predictions, intervals, draws and scores from `predict_distribution`.

    Fitted attributes that it reads: ``n_targets_``, ``target_is_vector_`` and ``cell_width_`` ((D,) or None, the grid
    of an interval-censored likelihood).
    """

    n_targets_: int
    target_is_vector_: bool
    cell_width_: Array | None

    @abstractmethod
    def predict_distribution(self, X: Any, *, metadata: Any = None) -> MixtureOfGaussians:
        """The predictive density of every row, in the units of y."""

    def _shaped(self, values: Array) -> Array:
        """Drop the axis of targets (the second) when y was one-dimensional."""
        return values if self.target_is_vector_ else values[:, 0]

    def predict(
        self,
        X: Any,
        *,
        metadata: Any = None,
        output: str = "mean",
        quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    ) -> Array:
        """Predict one number per target, or several quantiles. The result is deterministic.

        Parameters
        ----------
        output : {"mean", "median", "mode", "quantiles"}
            "mode" is the maximum of the (joint) density, searched from every component.
        quantiles : sequence of float
            Levels for ``output="quantiles"``.

        Returns
        -------
        ndarray (n,), or (n, D) for targets given as a matrix; "quantiles" adds a last axis.
        """
        check_arguments("predict", output=([StrOptions(set(OUTPUTS))], output))
        density = self.predict_distribution(X, metadata=metadata)
        if output == "mean":
            return self._shaped(density.mean.numpy())
        if output == "mode":
            return self._shaped(density.mode.numpy())
        levels = np.asarray([0.5] if output == "median" else quantiles, float)
        if levels.ndim != 1 or not len(levels):
            raise ValueError(f"quantiles must be a list of at least one level, such as [0.05, 0.95], not {quantiles!r}")
        parts = density.marginal_arrays()
        values = np.stack([scores.mixture_quantile(level, *parts) for level in levels], axis=-1)
        return self._shaped(values[..., 0] if output == "median" else values)

    def predict_interval(self, X: Any, *, metadata: Any = None, level: float = 0.9) -> Array:
        """Central intervals of probability `level`, (n, 2), or (n, D, 2) for targets given as a matrix."""
        # no finite interval holds all of a density
        check_arguments("predict_interval", level=([Interval(Real, 0, 1, closed="neither")], level))
        tail = 0.5 * (1.0 - level)
        return self.predict(X, metadata=metadata, output="quantiles", quantiles=(tail, 1.0 - tail))

    def sample(self, X: Any, n_samples: int = 1, *, metadata: Any = None, random_state: Any = None) -> Array:
        """Draw `n_samples` values per row, shape (n_samples, n), or (n_samples, n, D)."""
        check_arguments("sample", n_samples=([Interval(Integral, 1, None, closed="left")], n_samples))
        density = self.predict_distribution(X, metadata=metadata)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        with rng_scope(seed):
            draws = density.sample((int(n_samples),)).numpy()
        return draws if self.target_is_vector_ else draws[..., 0]

    def score_samples(self, X: Any, y: ArrayLike | None = None, *, metadata: Any = None) -> Array:
        """Log density of every row, in nats, in the units of y; without `y` its expectation, the negative entropy.

        With an interval-censored likelihood, the log of the mean density over the grid cell of y; it is directly
        comparable. A density may exceed 1, so positive values are normal.
        """
        density = self.predict_distribution(X, metadata=metadata)
        if y is None:
            return -density.entropy().numpy()
        value = check_targets(y, self.n_targets_)
        _same_rows(value, density)
        target = torch.from_numpy(value)
        if self.cell_width_ is None:
            return density.log_prob(target).numpy()
        return density.log_cell_prob(target, torch.from_numpy(self.cell_width_)).numpy()

    def score(self, X: Any, y: ArrayLike, *, metadata: Any = None, sample_weight: Any = None) -> float:
        """Mean log density in nats, in the units of y; higher is better."""
        each = self.score_samples(X, y, metadata=metadata)
        return float(np.average(each, weights=check_weight(sample_weight, len(each))))

    def crps(self, X: Any, y: ArrayLike, *, metadata: Any = None) -> Array:
        """Continuous ranked probability score in closed form, in the units of y; (n,), or (n, D) per target."""
        value = check_targets(y, self.n_targets_)
        density = self.predict_distribution(X, metadata=metadata)
        _same_rows(value, density)
        return self._shaped(scores.crps_mixture(value, *density.marginal_arrays()))

    def pit(self, X: Any, y: ArrayLike, *, metadata: Any = None, random_state: Any = None) -> Array:
        """Probability integral transform of every target, uniform for a calibrated model; (n,) or (n, D).

        Randomised within the grid cell where an interval-censored likelihood was fitted.
        """
        value = check_targets(y, self.n_targets_)
        density = self.predict_distribution(X, metadata=metadata)
        _same_rows(value, density)
        parts = density.marginal_arrays()
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return self._shaped(scores.pit_mixture(value, *parts, width=self.cell_width_, random_state=seed))


def _same_rows(value: Array, density: MixtureOfGaussians) -> None:
    if len(value) != density.batch_shape[0]:
        raise ValueError(f"X has {density.batch_shape[0]} rows, but y has {len(value)}")
