"""Checks of a transport on held-out rows: uniformity by level, probes, and losses."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import kstest, kstwo
from sklearn.exceptions import ConvergenceWarning

from residmix.erasure.transport.transport import Transport
from residmix.removal.probing import Errors, Ranks, learner_of
from residmix.rows.sampled import evenly

__all__ = ["Certificate", "measured"]

Floats = NDArray[np.float64]

# A probe may read this much: AUC above chance (above what the shares say, for "component"), and R2.
LEFT_AUC, LEFT_R2 = 0.05, 0.02
# ... or by so many standard errors of an AUC of .5 (Mann and Whitney 1947), where rows are few.
ERRORS = 3.0
# Kolmogorov-Smirnov distances may exceed their bound at 1 % (over all comparisons) by this: no model is exact.
LEFT_KS = 0.03
# Share of a feature's spread below which what is left of it, given the features before, is rounding.
DETERMINED = 1e-4
PROBES = {"linear": "linear", "forest": "nonlinear", "network": "network"}
PROBED, MOST_GROUPS, MOST_NUMBERS, FEWEST, BINS = 8000, 20, 3, 30, 20


@dataclass(frozen=True)
class Certificate:
    """Held-out checks of a fitted :class:`residmix.Eraser` with a transport.

    Attributes
    ----------
    method : str
    n_rows : int
        Number of held-out rows; the checked model was fitted without them.
    n_components : int
    candidates : list of dict
        ``n_components`` and ``log_likelihood`` per held-out row of all numbers of components that were tried.
    uniform : list of dict
        ``where`` (level, or third of a number), ``feature`` (of several components a direction, which tells them apart
        the better the lower its number), ``distance`` of the conditional probabilities F(x | m) from uniform
        (Kolmogorov-Smirnov), and the ``bound`` that chance exceeds in 1 % of certificates.
    probes : list of dict
        ``target``, ``probe`` ("linear", "forest" or "network"), ``before`` and ``after``, as AUC of groups (one against
        the rest) or R2 of numbers, and ``protected``: the score from the preserved columns alone.
    levels : list of dict
        ``where``, ``rows``, ``feature`` (that was farthest from uniform there before), ``before`` and ``after``: shares
        of the rows in 20 equal bins of F given the reference; ``bound`` as above. For
        :func:`residmix.plot_certificate`.
    price : list of dict
        ``what`` (clusters, or a preserved column), ``before`` and ``after``: how well a forest predicts it.
    shares : float or None
        AUC of the groups from the weights of the components alone: what "component" leaves, and what "full" removes
        from the clusters.
    failures : list of str
        Failed checks; empty if all passed.
    """

    method: str
    n_rows: int
    n_components: int
    candidates: list[dict[str, Any]]
    uniform: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    levels: list[dict[str, Any]]
    price: list[dict[str, Any]]
    shares: float | None
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        lines = [f"{'passed' if self.passed else 'FAILED'}: {self.method}, {self.n_components} components, "
                 f"{self.n_rows} held-out rows"]  # fmt: skip
        lines += [f"  {failure}" for failure in self.failures]
        lines += [f"{'':34}before   after"]
        for row in self.probes:
            name = f"{row['target']}, {row['probe']} ({row['measure']})"
            lines.append(f"  {name:32}{row['before']:6.3f}  {row['after']:6.3f}")
        if self.shares is not None:
            lines.append(f"  {'component weights alone (AUC)':32}{'':6}  {self.shares:6.3f}")
        for row in self.price:
            name = f"kept: {row['what']} ({row['measure']})"
            lines.append(f"  {name:32}{row['before']:6.3f}  {row['after']:6.3f}")
        if self.uniform:
            worst = max(self.uniform, key=lambda row: row["distance"] - row["bound"])
            lines.append(
                f"F(x | m) is farthest from uniform for {worst['feature']} at {worst['where']}: "
                f"{worst['distance']:.3f} (by chance up to {worst['bound']:.3f})"
            )
        return "\n".join(lines)


def measured(
    transport: Transport,
    x: Floats,
    a: Floats,
    *,
    method: str,
    features: list[str],
    columns: list[str],
    candidates: list[dict[str, Any]],
) -> Certificate:
    """Check a transport on held-out rows x (n, d) with design rows a (n, q)."""
    rows, plain = evenly(len(x), PROBED), transport.plain(len(x))
    compared = _compared(transport, x, a, features, columns)
    x, a = x[rows], a[rows]
    own = transport.by_group.at(a)
    groups, names = own.group, _names(transport, np.unique(own.group), columns)
    y = transport.forward(x, a, plain=plain)
    random = np.random.default_rng(0)
    first = random.permutation(len(x)) < len(x) // 2
    targets: list[tuple[str, NDArray[Any]]] = []
    if len(names) > 1:
        targets.append((names[0].split("=")[0] if len(names) == 2 else "groups", groups))
    numbers = transport.by_group.along.columns[:MOST_NUMBERS]
    targets += [(columns[j], a[:, j]) for j in numbers]
    probes = []
    protected = a[:, transport.n_removed :]
    for target, values in targets:
        said = _probe("nonlinear", protected, values, first) if protected.shape[1] else None
        for probe, kind in PROBES.items():
            scores = [_probe(kind, part, values, first) for part in (x, y)]
            if None not in scores:
                probes.append({"target": target, "probe": probe, "measure": _measure(values),
                               "before": scores[0], "after": scores[1], "protected": said})  # fmt: skip
    price = []
    labels = transport.labels(x, a)
    kept: list[tuple[str, NDArray[Any]]] = [("clusters", labels)] if len(np.unique(labels)) > 1 else []
    kept += [(columns[j], a[:, j]) for j in range(transport.n_removed, a.shape[1])][:MOST_NUMBERS]
    for what, values in kept:
        values = (
            values if len(np.unique(values)) > 2 and what != "clusters" else np.unique(values, return_inverse=True)[1]
        )
        scores = [_probe("nonlinear", part, values, first) for part in (x, y)]
        if None not in scores:
            price.append({"what": what, "measure": _measure(values), "before": scores[0], "after": scores[1]})
    shares = _shares(own.log_weights, groups, random) if len(names) > 1 else None
    K = own.log_weights.shape[1]
    made = Certificate(
        method, len(rows), K, candidates, compared.uniform, probes, compared.levels, price, shares
    )  # fmt: skip
    made.failures.extend(_failures(made))
    return made


def _names(transport: Transport, present: NDArray[np.intp], columns: list[str]) -> list[str]:
    """Return the names of groups, those of no level aside."""
    by_group = transport.by_group
    return [
        ", ".join(f"{columns[j]}={value:g}" for j, value in zip(by_group.columns, by_group.patterns[g], strict=True))
        for g in present
        if g < len(by_group.patterns)
    ]


def _measure(values: NDArray[Any]) -> str:
    return "AUC" if values.dtype.kind in "iub" else "R2"


def _probe(kind: str, features: Floats, target: NDArray[Any], first: NDArray[np.bool_]) -> float | None:
    """Return what a probe that learned on the `first` rows reads on the others; None if it can't learn."""
    groups = _measure(target) == "AUC"
    if groups:
        values, counts = np.unique(target, return_counts=True)
        most = values[np.argsort(-counts, kind="stable")[:MOST_GROUPS]]
        enough = np.isin(target, most[[(target[first] == v).sum() >= FEWEST // 3 for v in most]])
        features, target, first = features[enough], target[enough], first[enough]
        if len(np.unique(target[first])) < 2 or len(np.unique(target[~first])) != len(np.unique(target[first])):
            return None
    elif target.std() == 0:
        return None
    unit = 1.0 if groups else target.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that stops early reads what it reads
        fitted = learner_of(kind, groups, 0).fit(features[first], target[first] / unit)
    if kind == "nonlinear":
        fitted.set_params(n_jobs=1)  # threads add the trees' votes in the order in which they finish
    if groups:
        return Ranks(fitted.predict_proba(features[~first]), fitted.classes_, target[~first]).score(target[~first])
    held = target[~first] / unit
    return Errors(fitted.predict(features[~first]), held, float(held.mean())).score(held)


@dataclass(frozen=True)
class _Compared:
    """Distances of F from uniform, by level and feature."""

    uniform: list[dict[str, Any]]
    levels: list[dict[str, Any]]


def _compared(transport: Transport, x: Floats, a: Floats, features: list[str], columns: list[str]) -> _Compared:
    """Compare F(x_j | x_<j, m) with the uniform distribution, by group and by thirds of each number."""
    plain = transport.plain(len(x))
    scores = transport.scores(x, a, plain=plain)
    # what the features before a feature determine, to rounding, has no law of its own
    widest = np.diagonal(transport.by_group.factors, axis1=2, axis2=3).max(axis=(0, 1))
    told = np.flatnonzero(scores.std(axis=0) * widest > DETERMINED * transport.coordinates(x, a).std(axis=0))
    if not len(told):
        return _Compared([], [])
    own = ndtr(scores)
    reference = ndtr(transport.scores(x, a, plain=plain, of_target=True))
    parts, features = _parts(transport, a, columns), _directions(transport, x, features)
    comparisons = max(len(parts) * x.shape[1], 1)
    made = _Compared([], [])
    for where, rows in parts:
        bound = float(kstwo.isf(0.01 / comparisons, int(rows.sum())))
        for j in told:
            distance = float(kstest(own[rows, j], "uniform").statistic)
            made.uniform.append({"where": where, "feature": features[j], "distance": distance, "bound": bound})
        before = [float(kstest(reference[rows, j], "uniform").statistic) for j in told]
        j = told[int(np.argmax(before))]
        made.levels.append({"where": where, "rows": int(rows.sum()), "feature": features[j], "bound": bound,
                            "before": _binned(reference[rows, j]), "after": _binned(own[rows, j])})  # fmt: skip
    return made


def _directions(transport: Transport, x: Floats, features: list[str]) -> list[str]:
    """Return the names of the coordinates that F is of: features, or which feature a direction has most of."""
    basis = transport.by_group.basis
    if transport.by_group.params.n_components == 1:
        return features
    most = np.abs(basis * x.std(axis=0)[:, None]).argmax(axis=0)
    return [f"direction {j + 1} (most of {features[i]})" for j, i in enumerate(most)]


def _parts(transport: Transport, a: Floats, columns: list[str]) -> list[tuple[str, NDArray[np.bool_]]]:
    group = transport.by_group.group_of(a)
    present = np.unique(group[group < len(transport.by_group.patterns)])
    names = _names(transport, present, columns)
    parts = list(zip(names, [group == g for g in present], strict=True)) if len(present) > 1 else []
    for j in transport.by_group.along.columns[:MOST_NUMBERS]:
        third = np.searchsorted(np.quantile(a[:, j], [1 / 3, 2 / 3]), a[:, j])
        parts += [(f"{columns[j]}, {name} third", third == i) for i, name in enumerate(("lowest", "middle", "highest"))]
    return [(name, rows) for name, rows in parts if rows.sum() >= FEWEST]


def _binned(probability: Floats) -> list[float]:
    counts = np.histogram(probability, BINS, (0.0, 1.0))[0]
    return [float(share) for share in counts / max(counts.sum(), 1)]


def _shares(log_weights: Floats, groups: NDArray[np.intp], random: np.random.Generator) -> float | None:
    """Return the AUC with which a component drawn from each row's weights tells its group."""
    from sklearn.metrics import roc_auc_score

    weights = np.exp(log_weights)
    drawn = (random.random((len(weights), 1)) > weights.cumsum(axis=1)).sum(axis=1).clip(max=weights.shape[1] - 1)
    present = np.unique(groups)
    rates = np.stack([weights[groups == g].sum(axis=0) for g in present], axis=1)
    chance = (rates / rates.sum(axis=1, keepdims=True))[drawn]
    if len(present) == 2:
        return float(roc_auc_score(groups == present[1], chance[:, 1]))
    return float(roc_auc_score(groups, chance, multi_class="ovr"))


def _failures(made: Certificate) -> list[str]:
    failures = []
    # half of the rows are judged; of n in two equal groups the variance is 1 / (3 n)
    left = max(LEFT_AUC, ERRORS / np.sqrt(1.5 * made.n_rows))
    chance = max(0.5, made.shares or 0.5) if made.method == "component" else 0.5
    for row in made.probes:
        said = row["protected"] or 0.0  # what is preserved may tell of what is erased
        limit = max(chance, said) + left if row["measure"] == "AUC" else max(said, 0.0) + LEFT_R2
        if row["after"] > limit and not (made.method == "component" and row["measure"] == "R2"):
            failures.append(
                f"a held-out {row['probe']} probe still predicts {row['target']} with {row['measure']} "
                f"{row['after']:.3f} (allowed: {limit:.3f})"
            )
    wrong = [row for row in made.uniform if row["distance"] > row["bound"] + LEFT_KS]
    if wrong:
        worst = max(wrong, key=lambda row: row["distance"])
        failures.append(
            f"the mixture doesn't fit p(x | m): for {worst['feature']} at {worst['where']}, F(x | m) is "
            f"{worst['distance']:.3f} from uniform (allowed: {worst['bound'] + LEFT_KS:.3f})"
        )
    return failures
