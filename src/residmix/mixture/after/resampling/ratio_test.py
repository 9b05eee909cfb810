"""Parametric-bootstrap likelihood-ratio tests for the number of components."""

from __future__ import annotations

from html import escape
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils._param_validation import Interval

from residmix.errors import check_arguments, unnoted
from residmix.mixture.after.resampling.refits import Refits

__all__ = ["RatioTest", "bootstrap_lrt"]


class RatioTest:
    """Tests of K components against K + 1, one after the other.

    Attributes
    ----------
    n_components_ : int
        The first K that isn't rejected; or the largest tested K plus 1.
    table : dict of lists
        n_components (K), statistic (twice the gain in log-likelihood of one more component), p_value, n_resamples.
    """

    def __init__(self, table: dict[str, list[Any]], level: float) -> None:
        self.table, self.level = table, level
        kept = [K for K, p in zip(table["n_components"], table["p_value"], strict=True) if p > level]
        self.n_components_: int = kept[0] if kept else table["n_components"][-1] + 1

    def __str__(self) -> str:
        lines = ["K vs K + 1  statistic  p value"]
        for K, value, p, _ in zip(*self.table.values(), strict=True):
            lines.append(f"{K:>2} vs {K + 1:<4}  {value:9.2f}  {p:7.3f}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def bootstrap_lrt(
    model: Any,
    X: Any,
    max_components: int = 9,
    *,
    metadata: Any = None,
    n_resamples: int = 199,
    level: float = 0.05,
    random_state: int = 0,
) -> RatioTest:
    r"""Test K components against K + 1, for K = 1, 2, ..., until a K isn't rejected.

    .. math:: \lambda = 2 [\log L_{K+1} - \log L_K]

    has no chi-squared distribution, because weights of 0 are on the boundary. So it is compared with the statistic of
    rows drawn from the mixture of K components: :math:`p = (1 + \#\{\lambda_b \ge \lambda\}) / (1 + B)`. Drawing stops
    early once p must end above `level`.

    Parameters
    ----------
    model : GaussianMixture or ResidualMixture
        An estimator with the settings to use, with one covariance family. It needn't be fitted, and its number of
        components is ignored.
    X, metadata
        As its `fit` takes them.
    max_components : int, default=9
        The largest K that is tested.
    n_resamples : int, default=199
    level : float, default=0.05
    random_state : int

    Returns
    -------
    RatioTest
        With ``n_components_`` and ``table``; ``print`` shows it.

    References
    ----------
    McLachlan (1987), "On bootstrapping the likelihood ratio test statistic for the number of components in a normal
    mixture", J. R. Stat. Soc. C 36:318.

    Examples
    --------
    >>> import numpy as np
    >>> import residmix as rm
    >>> X = np.random.default_rng(0).normal(size=(100, 1)) + np.repeat([[0], [9]], 50, axis=0)
    >>> rm.bootstrap_lrt(rm.GaussianMixture(random_state=0), X, n_resamples=19).n_components_
    2
    """
    check_arguments(
        "bootstrap_lrt",
        max_components=([Interval(Integral, 1, None, closed="left")], max_components),
        n_resamples=([Interval(Integral, 19, None, closed="left")], n_resamples),
        level=([Interval(Real, 1 / (n_resamples + 1), 0.5, closed="both")], level),
    )
    if not isinstance(model.covariance_type, str) or model.covariance_type == "auto":
        raise ValueError(f"bootstrap_lrt needs one covariance_type, not {model.covariance_type!r}")
    given = {} if metadata is None else {"metadata": metadata}
    table: dict[str, list[Any]] = {name: [] for name in ("n_components", "statistic", "p_value", "n_resamples")}
    small = _fit(model, 1, X, given)
    for K in range(1, max_components + 1):
        large = _fit(model, K + 1, X, given)
        refits = Refits(small, X, metadata)
        statistic = _gain(small, large, refits.n_rows)
        exceeded, drawn = _exceeded(refits, K, statistic, n_resamples, level, [random_state, K])
        p = (1 + exceeded) / (1 + drawn)
        for name, value in zip(table, (K, statistic, p, drawn), strict=True):
            table[name].append(value)
        if p > level:
            break
        small = large
    return RatioTest(table, level)


def _fit(model: Any, K: int, X: Any, given: dict[str, Any]) -> Any:
    starts = dict.fromkeys(("weights_init", "means_init", "precisions_init", "labels_init", "checkpoint"))
    with unnoted():
        return clone(model).set_params(n_components=K, warm_start=False, **starts).fit(X, **given)


def _gain(small: Any, large: Any, n_rows: int) -> float:
    return max(2.0 * n_rows * float(large.lower_bound_ - small.lower_bound_), 0.0)


def _exceeded(
    refits: Refits, K: int, statistic: float, n_resamples: int, level: float, seed: list[int]
) -> tuple[int, int]:
    """Return how many draws have a statistic as large, and the number of draws."""
    exceeded = 0
    for drawn, own in enumerate(np.random.SeedSequence(seed).generate_state(n_resamples), 1):
        rows = refits.drawn(int(own))
        try:
            value = _gain(refits.fit_drawn(rows), refits.fit_drawn(rows, K + 1), refits.n_rows)
        except ValueError:  # a draw that can't be fitted speaks for K
            value = np.inf
        exceeded += value >= statistic
        if (1 + exceeded) / (1 + n_resamples) > level and exceeded >= 5:
            return exceeded, drawn
    return exceeded, n_resamples
