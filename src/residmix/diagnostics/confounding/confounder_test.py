"""The partial and the full confounder test."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from residmix.diagnostics.confounding.swaps import Swaps, permuted_products
from residmix.diagnostics.confounding.variables import Variables, given, orthonormal, unexplained, variables
from residmix.errors import check_arguments

__all__ = ["ConfounderTest", "confounder_test"]

Floats = NDArray[np.float64]

# Most levels of a confounder whose distribution given the target is modelled; with more it's the target's, given it.
MOST_LEVELS = 20
# Permutations and steps by default, and the fewest where there are many rows.
PERMUTATIONS, FEWEST = 999, 199
STEPS, FEWEST_STEPS = 50, 10
# Swaps that may be tried in all.
SWAPS = 1e9


@dataclass(frozen=True)
class ConfounderTest:
    """Result of a confounder test.

    Attributes
    ----------
    kind : {"partial", "full"}
    statistic : float
        R2 of prediction and confounders (partial), or of prediction and target (full); of several columns the mean of
        squared canonical correlations.
    p_value : float
    expected : tuple of float
        5, 50 and 95 % points of the statistic if the null hypothesis holds.
    null : ndarray (n_permutations,)
        The statistic of each permutation.
    n_rows, n_steps : int
    """

    kind: str
    statistic: float
    p_value: float
    expected: tuple[float, float, float]
    null: Floats
    n_rows: int
    n_steps: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the null distribution."""
        return {
            "kind": self.kind,
            "statistic": self.statistic,
            "p_value": self.p_value,
            "expected": list(self.expected),
            "n_rows": self.n_rows,
            "n_permutations": len(self.null),
            "n_steps": self.n_steps,
        }

    def __repr__(self) -> str:
        what = "confounders" if self.kind == "partial" else "target"
        return (
            f"<{self.kind} confounder test of {self.n_rows} rows: R2 with the {what} {self.statistic:.3f}, expected "
            f"{self.expected[1]:.3f}, p = {self.p_value:.3g}>"
        )


def confounder_test(
    prediction: Any,
    y: Any,
    confounders: Any,
    kind: str = "partial",
    *,
    statistic: str = "r2",
    n_permutations: int | None = None,
    n_steps: int | None = None,
    random_state: int = 0,
) -> ConfounderTest:
    r"""Test if predictions depend on confounders given the target (partial), or on the target given confounders (full).

    .. math:: H_{partial}: \hat y \perp c \mid y, \qquad H_{full}: \hat y \perp y \mid c

    A small p-value of the partial test means that predictions depend on confounders; one of the full test, that
    predictions aren't explained by confounders alone. Confounders (in the full test: the target) are permuted in a way
    that preserves their relation to the target (confounders). This uses a model of the one given the other: an additive
    model with splines and normal errors, or a multinomial logit.

    Parameters
    ----------
    prediction : array (n,) or (n, k), or frame
        Predictions of held-out rows: numbers (also probabilities), or categories as text.
    y : array (n,)
        The target: numbers, or categories as text or booleans.
    confounders : array (n,) or (n, p), or frame
        Numbers are used as numbers: convert codes of categories to text.
    kind : {"partial", "full"}
    statistic : {"r2", "partial-r2"}
        "r2": R2 of the prediction, as in mlconfound. "partial-r2": R2 of its residuals from an additive model of the
        target (in the full test: of the confounders). The latter also detects a dependence that is smaller than
        expected, and isn't conservative when predictions are very good.
    n_permutations, n_steps : int, optional
        Number of permutations, and of swap steps for each. Default: 999 and 50; with more than 40,000 rows fewer, down
        to 199 and 10.
    random_state : int

    Returns
    -------
    ConfounderTest
        With ``statistic`` and ``p_value`` = (1 + number of permutations whose statistic is as large) / (1 + all).

    Raises
    ------
    ValueError
        For missing values, unequal lengths, or a constant variable.

    References
    ----------
    Spisak (2022), "Statistical quantification of confounding bias in machine learning models", GigaScience 11; Berrett,
    Wang, Barber and Samworth (2020), J. R. Stat. Soc. B 82:175.

    Examples
    --------
    >>> import numpy as np
    >>> import residmix as rm
    >>> rng = np.random.default_rng(0)
    >>> age = rng.normal(size=300)
    >>> y = age + rng.normal(size=300)
    >>> rm.confounder_test(y + age + rng.normal(size=300), y, age).p_value
    0.001
    >>> rm.confounder_test(y + rng.normal(size=300), y, age).p_value > 0.05
    True
    """
    check_arguments(
        "confounder_test",
        kind=([StrOptions({"partial", "full"})], kind),
        statistic=([StrOptions({"partial-r2", "r2"})], statistic),
        n_permutations=([Interval(Integral, 19, None, closed="left"), None], n_permutations),
        n_steps=([Interval(Integral, 1, None, closed="left"), None], n_steps),
    )
    predicted = variables(prediction, "prediction")
    n = len(predicted)
    target, confounding = variables(y, "y", n), variables(confounders, "confounders", n)
    if target.numbers.shape[1] + len(target.levels) != 1:
        raise ValueError("y must have one column")
    m, steps = _effort(n, n_permutations, n_steps)
    basis = predicted.columns()
    if statistic == "partial-r2":
        basis = unexplained(basis, target if kind == "partial" else confounding)
    basis = orthonormal(basis)
    other = orthonormal((confounding if kind == "partial" else target).columns())
    swaps = _swaps(kind, basis, other, target, confounding)
    size = max(min(basis.shape[1], other.shape[1]), 1)
    observed = float(((basis.T @ other) ** 2).sum()) / size
    null = (permuted_products(swaps, m, steps, random_state) ** 2).sum(axis=(1, 2)) / size
    p = (1 + int((null >= observed * (1 - 1e-9)).sum())) / (1 + m)
    low, middle, high = map(float, np.percentile(null, [5, 50, 95]))
    return ConfounderTest(kind, observed, p, (low, middle, high), null, n, steps)


def _effort(n: int, n_permutations: int | None, n_steps: int | None) -> tuple[int, int]:
    """Return the numbers of permutations and steps."""
    steps = STEPS if n_steps is None else n_steps
    m = int(np.clip(2 * SWAPS / (n * steps), FEWEST, PERMUTATIONS)) if n_permutations is None else n_permutations
    if n_steps is None:
        steps = int(np.clip(2 * SWAPS / (n * m), FEWEST_STEPS, STEPS))
    return m, steps


def _swaps(kind: str, basis: Floats, other: Floats, target: Variables, confounding: Variables) -> Swaps:
    if kind == "full":
        return Swaps(*given(target, confounding), carried=other, basis=basis)
    few = len(confounding.levels) == 1 and confounding.levels[0].max() < MOST_LEVELS
    if not confounding.levels or (few and not confounding.numbers.shape[1]):
        return Swaps(*given(confounding, target), carried=other, basis=basis)
    # confounders of several kinds: the odds are the same from the target's distribution given them all
    return Swaps(*given(target, confounding), carried=basis, basis=other)
