"""Fit a transport and its certificate: number of components, training and held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.erasure.transport.certificate import PROBED, Certificate, measured
from residmix.erasure.transport.groups import COVARIANCES
from residmix.erasure.transport.transport import STARTS, Asked, Transport, fit_transport
from residmix.errors import note
from residmix.moments.erase import column_scale
from residmix.rows.sampled import evenly
from residmix.rows.threads import one_blas_thread
from residmix.sources.open import as_table

__all__ = ["FIT_ROWS", "certified", "discrete_columns", "referred"]

Floats = NDArray[np.float64]

# Rows that laws are fitted on and measured with, evenly spaced: in memory, and enough for a dozen components a group.
FIT_ROWS = 200_000
HELD_OUT = 0.3
# Numbers of no more values than this tell groups apart, as levels do; along others laws vary smoothly.
GROUP_VALUES = 2
CANDIDATES = (1, 2, 3, 4, 6, 8)
# Components that a cluster may be divided into, that all rows may be, and the most of all together.
PARTS, ALONE, MOST = (1, 2, 3, 4), (1, 2, 3, 4, 6, 8), 16
# A division that moves a larger share of the rows to another cluster isn't one.
STRAYED = 0.03
# A further component must be worth this much of the log-likelihood of a held-out row.
WORTH = 1e-3
# So many numbers that aren't may stand before one that is: two Gaussians may be no better than one, and three are.
PATIENCE = 1


def certified(
    x: Floats,
    a: Floats,
    weight: Floats,
    discrete: NDArray[np.bool_],
    n_components: int | str,
    *,
    method: str,
    reference: Floats | None,
    features: list[str],
    columns: list[str],
    random_state: int,
) -> tuple[Transport, Certificate]:
    """Return the transport of all rows, and the certificate of one that was fitted without the held-out rows.

    Weights have any unit: since priors count rows, they stand for Kish's effective number, (sum w)^2 / sum w^2.

    Raises
    ------
    ValueError
        If no feature varies.
    """
    varies = _varying(x, weight)
    if not varies.any():
        raise ValueError(f"all features are constant ({', '.join(features[:8])}), so there is nothing to transport")
    if not varies.all():
        x, same = x[:, varies], [name for name, v in zip(features, varies, strict=True) if not v]
        features = [name for name in features if name not in same]
        note("constant", f"constant features stay as they are: {', '.join(same[:8])}", features=same)
    weight = weight / weight.max()
    weight = weight * (weight.sum() / (weight @ weight))
    asked = Asked(x, a, weight, discrete, reference, method == "component", random_state)
    with one_blas_thread():  # whose products are small: two threads wait for each other longer than they work
        made, certificate = _certified(asked, n_components, method, features, columns)
    return (made if varies.all() else replace(made, varies=varies)), certificate


def _varying(x: Floats, weight: Floats) -> NDArray[np.bool_]:
    """Return which features vary by more than the rounding of their mean."""
    mean = weight @ x / weight.sum()
    variance = weight @ (x - mean) ** 2 / weight.sum()
    return column_scale(mean, np.diag(variance)) > 0


def _certified(
    asked: Asked, n_components: int | str, method: str, features: list[str], columns: list[str]
) -> tuple[Transport, Certificate]:
    n, d = asked.x.shape
    held = np.random.default_rng(asked.random_state).permutation(n) < HELD_OUT * n
    search = _Search(asked.only(~held), asked.only(held))
    behind = 0
    for k in _tried(n_components, method, n, d):
        better = search.look(
            k, PARTS[:1] if n_components != "auto" or method == "spread" else PARTS if k > 1 else ALONE
        )
        behind = 0 if better else behind + 1
        if behind > PATIENCE:
            break
    best = search.best
    assert best is not None
    certificate = measured(
        best, search.held.x, search.held.a, method=method, features=features, columns=columns,
        candidates=search.candidates, fitted=n - int(held.sum()),
    )  # fmt: skip
    whole = fit_transport(asked, certificate.n_components, covariances=best.covariances, parts=best.parts, begun=best)
    assert whole is not None
    return whole, certificate


@dataclass
class _Search:
    """The mixtures that were tried, and the one of which held-out rows are most likely."""

    known: Asked
    held: Asked
    best: Transport | None = None
    score: float = -np.inf
    undivided: float = -np.inf
    undivided_by_group: float = -np.inf
    candidates: list[dict[str, Any]] = field(default_factory=list)

    def look(self, k: int, parts: tuple[int, ...]) -> bool:
        """Try k clusters, of one and of more components each; tell whether one of these is the best so far."""
        base = self._base(k, len(parts) == 1)
        if base is None:
            return False
        self.undivided_by_group = max(self.undivided_by_group, self._likelihood(base))
        better, ahead = False, -np.inf
        for covariances in COVARIANCES if k > 1 else COVARIANCES[:1]:
            made = base if covariances == base.covariances else fit_transport(
                self.known, k, covariances=covariances, begun=base
            )  # fmt: skip
            assert made is not None
            better |= self._kept(made)
            ahead = max(ahead, self.candidates[-1]["log_likelihood"])
        if ahead < self.undivided + WORTH:
            return better
        self.undivided = ahead
        return self._divide(base, k, parts[1:], ahead) or better

    def _base(self, k: int, asked: bool) -> Transport | None:
        """Return the mixture of k clusters with a component each; None if rows deny them, from wherever it begins.

        Rows aren't heard where k components were `asked` for. Where the first start finds components that aren't
        clusters, others are tried only if held-out rows are likelier with it than with fewer of the same family.
        """
        for start in range(1 if asked or k == 1 else len(STARTS)):
            made = fit_transport(self.known, k, covariances=COVARIANCES[0], start=start)
            assert made is not None
            if asked or self._sound(made):
                return made
            if start == 0 and self._likelihood(made) < self.undivided_by_group + WORTH:
                return None
        return None

    def _divide(self, base: Transport, k: int, parts: tuple[int, ...], ahead: float) -> bool:
        """Try more components for each of the k clusters of `base`; tell whether one of these is the best so far."""
        (n, d), behind, better = self.known.x.shape, 0, False
        for part in parts:
            if not _enough(k * part, n, d) or k * part > MOST or behind > PATIENCE:
                break
            made, found = base, -np.inf
            for covariances in COVARIANCES[:2]:
                began = base if made.parts != part else made
                one = fit_transport(self.known, k * part, covariances=covariances, parts=part, begun=began)
                if one is None or not self._sound(one):
                    break
                made = one
                if self._strayed(base, made) <= STRAYED:
                    better |= self._kept(made)
                    found = max(found, self.candidates[-1]["log_likelihood"])
            behind = 0 if found > ahead + WORTH else behind + 1
            ahead = max(found, ahead)
        return better

    def _sound(self, made: Transport) -> bool:
        """Tell whether the clusters of this mixture are what rows say."""
        rows = evenly(len(self.known.x), PROBED)
        return made.sound(self.known.x[rows], self.known.a[rows], self.known.weight[rows])

    def _likelihood(self, made: Transport) -> float:
        """Return the log-likelihood of a held-out row."""
        weight = self.held.weight
        return float(weight @ made.log_density(self.held.x, self.held.a) / weight.sum())

    def _kept(self, made: Transport) -> bool:
        score = self._likelihood(made)
        self.candidates.append({"n_components": made.by_group.params.n_components, "parts": made.parts,
                                "covariances": made.covariances, "log_likelihood": score})  # fmt: skip
        if not score > self.score + WORTH and self.best is not None:
            return False
        self.best, self.score = made, score
        return True

    def _strayed(self, base: Transport, made: Transport) -> float:
        """Return the share of rows whose cluster changed when clusters were divided."""
        rows = evenly(len(self.held.x), PROBED)
        x, a = self.held.x[rows], self.held.a[rows]
        return float((base.cluster_labels(x, a) != made.cluster_labels(x, a)).mean())


def _enough(k: int, n: int, d: int) -> bool:
    return k == 1 or k * (d + 2) * 5 < n


def _tried(n_components: int | str, method: str, n: int, d: int) -> list[int]:
    if method == "spread":
        return [1]
    if isinstance(n_components, int):
        return [n_components]
    return [k for k in CANDIDATES if _enough(k, n, d)]


def discrete_columns(design: Design, a: Floats) -> NDArray[np.bool_]:
    """Return which removed columns (n_removed,) of design rows a (n, q) tell groups apart.

    These are columns of levels, and others of two values. Levels have more in some contrasts, and where some are
    missing: these rows have the average of all levels, as numbers that are missing are filled with their mean.
    """
    told = np.zeros(design.n_removed, dtype=bool)
    for term in design.terms:
        crossed = term.kind == "interaction" and not term.preserved and design.combinations(term) is not None
        if not term.preserved and (crossed or term.kind in ("factor", "missing")):
            told[term.columns] = True
    most = GROUP_VALUES + (design.missing != "error")
    few = [len(np.unique(column)) <= most for column in a.T[: design.n_removed]]
    return np.asarray(told | np.array(few, dtype=bool), dtype=bool)


def referred(design: Design, reference: dict[str, Any] | None) -> Floats | None:
    """Return the columns to remove (q,) of the reference's design row; None for the average."""
    if reference is None:
        return None
    if set(reference) != set(design.columns):
        raise ValueError(
            f"reference must have a value for each erased column, {list(design.columns)}, but has one for "
            f"{list(reference)}"
        )
    import pandas as pd

    row = pd.DataFrame({name: [reference[name]] for name in design.columns})
    part = next(iter(as_table(np.zeros((1, 1)), metadata=row).chunks(None)))
    return np.asarray(design.matrix(part).dense[0, : design.n_removed], dtype=np.float64)
