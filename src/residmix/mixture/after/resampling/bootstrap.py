"""The bootstrap: standard errors and confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions

from residmix.errors import DeadComponentWarning, ResidmixWarning, check_arguments, warn
from residmix.mixture.after.matching import match_components
from residmix.mixture.after.resampling.refits import Refits, estimates, in_order
from residmix.rows.checks import check_weight, check_weight_values

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Bootstrap", "bootstrap"]

Floats = NDArray[np.float64]

KINDS = ("nonparametric", "parametric", "weighted")


class Bootstrap:
    """Fits to resampled rows, with components in the order of the model.

    Attributes
    ----------
    estimates : Bunch
        The model's weights, means and covariances, and those of dof, noise_weight, coef, intercept, gate_coef and
        gate_intercept that it has.
    replicates : Bunch
        The same of each fit, (n_resamples, ...).
    standard_errors : Bunch
        Standard deviations over the fits.
    lower, upper : Bunch
        Percentile intervals.
    n_failed : int
        Number of resamples that couldn't be fitted and are left out.
    """

    def __init__(self, model: Any, replicates: list[dict[str, Floats]], n_failed: int, confidence: float) -> None:
        own = estimates(model)
        self.estimates, self.n_failed = Bunch(**own), n_failed
        self.replicates = Bunch(**{name: np.stack([fit[name] for fit in replicates]) for name in own})
        tail = 100 * (1 - confidence) / 2
        self.standard_errors = Bunch(**{name: value.std(axis=0, ddof=1) for name, value in self.replicates.items()})
        bounds = {name: np.percentile(value, [tail, 100 - tail], axis=0) for name, value in self.replicates.items()}
        self.lower = Bunch(**{name: value[0] for name, value in bounds.items()})
        self.upper = Bunch(**{name: value[1] for name, value in bounds.items()})

    def tidy(self) -> pd.DataFrame:
        """Return a data frame with a row for each number: parameter, index, estimate, std_error, lower, upper."""
        import pandas as pd

        rows = []
        for name, value in self.estimates.items():
            for index in np.ndindex(value.shape):
                found = (part[name][index] for part in (self.estimates, self.standard_errors, self.lower, self.upper))
                rows.append((name, index, *map(float, found)))
        return pd.DataFrame(rows, columns=["parameter", "index", "estimate", "std_error", "lower", "upper"])

    def __repr__(self) -> str:
        n = len(self.replicates.weights)
        return f"<bootstrap of {n} fits: .standard_errors, .lower, .upper, .tidy()>"


def bootstrap(
    model: Any,
    X: Any,
    n_resamples: int = 200,
    *,
    metadata: Any = None,
    sample_weight: ArrayLike | None = None,
    kind: str = "nonparametric",
    confidence: float = 0.95,
    random_state: int = 0,
) -> Bootstrap:
    r"""Return bootstrap standard errors and confidence intervals of a mixture's parameters.

    Each fit starts at the parameters of the model. Its components are matched to those of the model
    (:func:`residmix.match_components`), so that label switching isn't counted as error.

    Parameters
    ----------
    model : GaussianMixture or ResidualMixture
        Fitted to `X`.
    X, metadata
        As its `fit` takes them.
    n_resamples : int, default=200
    sample_weight : array-like (n,), optional
        Those of the fit. A row of weight 2 counts as two rows, so the resamples are those of repeated rows; not with
        ``kind="parametric"``.
    kind : {"nonparametric", "parametric", "weighted"}
        "nonparametric": rows drawn with replacement (as weights 0, 1, 2, ...). "parametric": rows drawn from the model,
        given their metadata. "weighted": weights from a flat Dirichlet distribution, which leave no row out (Newton &
        Raftery 1994, J. R. Stat. Soc. B 56:3).
    confidence : float, default=0.95
        Of the percentile intervals.
    random_state : int

    Returns
    -------
    Bootstrap

    Raises
    ------
    ValueError
        If fewer than two resamples could be fitted, or rows drawn from the model would have weights.

    References
    ----------
    O'Hagan, Murphy, Scrucca and Gormley (2019), "Investigation of parameter uncertainty in clustering using a Gaussian
    mixture model via jackknife, bootstrap and weighted likelihood bootstrap", Comput. Stat. 34:1779.

    Examples
    --------
    >>> import numpy as np
    >>> import residmix as rm
    >>> X = np.random.default_rng(0).normal(size=(200, 1)) + np.repeat([[0], [9]], 100, axis=0)
    >>> model = rm.GaussianMixture(2, random_state=0).fit(X)
    >>> rm.bootstrap(model, X, 50).standard_errors.means.round(1)
    array([[0.1],
           [0.1]])
    """
    check_arguments(
        "bootstrap",
        kind=([StrOptions(set(KINDS))], kind),
        n_resamples=([Interval(Integral, 2, None, closed="left")], n_resamples),
        confidence=([Interval(Real, 0.5, 0.9999, closed="both")], confidence),
    )
    refits = Refits(model, X, metadata)
    refits.weight = _weight(refits, sample_weight, kind)
    again = _KINDS[kind]
    shared = model._model().family.kept[0] != "K"
    found, failed = [], 0
    for seed in np.random.SeedSequence(random_state).generate_state(n_resamples):
        try:
            fit = again(refits, int(seed))
        except ValueError:
            failed += 1
            continue
        found.append(in_order(estimates(fit), np.asarray(match_components(model, fit)), shared))
    if len(found) < 2:
        raise ValueError(
            f"{failed} of {n_resamples} resamples couldn't be fitted: there are too few rows for the "
            "components; use fewer components, or kind='weighted'"
        )
    if failed:
        warn(
            f"{failed} of {n_resamples} resamples couldn't be fitted, because a component lost its rows. They are "
            "left out; fewer components may be enough",
            DeadComponentWarning,
            failed=failed,
        )
    return Bootstrap(model, found, failed, confidence)


def _weight(refits: Refits, sample_weight: ArrayLike | None, kind: str) -> Floats | None:
    """Return the weights of the rows, checked against those that the model was fitted with."""
    weight = check_weight(sample_weight, refits.n_rows)
    if weight is not None:
        check_weight_values(weight, 0)
        if kind == "parametric":
            raise ValueError("sample_weight doesn't go with kind='parametric', whose rows are drawn from the model")
        return weight
    total = refits.model._weight_of_fit()
    if total and not refits.model.trim and abs(total - refits.n_rows) > 1e-6 * total:
        warn(
            f"the model was fitted to rows with a weight of {total:g} in all, and these are {refits.n_rows}: errors "
            "are those of a fit to these, without weights. Pass the rows of the fit, and its sample_weight",
            ResidmixWarning,
            kind="other-rows",
            total=total,
            rows=refits.n_rows,
        )
    return None


def _nonparametric(refits: Refits, seed: int) -> Any:
    random = np.random.default_rng(seed)
    if refits.weight is not None:
        total = refits.weight.sum()
        return refits.weighted(random.multinomial(max(round(total), 1), refits.weight / total).astype(np.float64))
    drawn = np.bincount(random.integers(0, refits.n_rows, refits.n_rows), minlength=refits.n_rows)
    return refits.weighted(drawn.astype(np.float64))


def _parametric(refits: Refits, seed: int) -> Any:
    return refits.fit_drawn(refits.drawn(seed))


def _weighted(refits: Refits, seed: int) -> Any:
    random = np.random.default_rng(seed)
    if refits.weight is not None:  # a sum of as many exponential ones
        weight = random.standard_gamma(refits.weight)
        return refits.weighted(np.asarray(weight * (refits.weight.sum() / weight.sum()), dtype=np.float64))
    weight = random.standard_exponential(refits.n_rows)
    return refits.weighted(np.asarray(weight / weight.mean(), dtype=np.float64))


_KINDS: dict[str, Callable[[Refits, int], Any]] = dict(
    zip(KINDS, (_nonparametric, _parametric, _weighted), strict=True)
)
