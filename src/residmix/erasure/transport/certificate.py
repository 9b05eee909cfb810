r"""Checks of a transport on held-out rows: uniformity by level, probes, and losses.

A check fails if more is left than is allowed *and* chance doesn't explain it: probes of a transport that leaves what is
allowed fail in at most 1 % of certificates, and so do distances from uniform.

- What a probe reads is compared with what its predictions read of permuted targets: the allowed AUC is
  :math:`.53 + z s`, with s the standard deviation over permutations, and z the normal quantile of 1 % shared by all
  probes; likewise R2.
- Distances from uniform have the Kolmogorov-Smirnov bound of 1 %, shared by all levels and features, of
  :math:`n m / (n + m)` rows where n rows are held out and m were fitted: a fit by maximum likelihood to m rows of the
  mixture knows F at least as well as their empirical distribution does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import kstest, kstwo, norm

from residmix.erasure.transport.probes import FEWEST, PROBES, Reading, measure_of, probed
from residmix.erasure.transport.transport import Transport
from residmix.rows.sampled import evenly

__all__ = ["PROBED", "Certificate", "measured"]

Floats = NDArray[np.float64]

# Share of certificates that fail by chance: once for all probes, once for all distances.
ERROR = 0.01
# A probe may read this much and what chance gives: AUC above a half (above what the shares say, for "component"), R2.
LEFT_AUC, LEFT_R2 = 0.03, 0.02
# Kolmogorov-Smirnov distances may exceed their bound by this: no model is exact.
LEFT_KS = 0.03
# Share of a feature's spread below which what is left of it, given the features before, is rounding.
DETERMINED = 1e-4
PROBED, MOST_NUMBERS, BINS = 8000, 3, 20


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
        ``n_components``, ``parts`` (components a cluster), ``covariances`` ("by-group", "by-component" or "tied") and
        ``log_likelihood`` per held-out row of all mixtures that were tried.
    uniform : list of dict
        ``where`` (level, or third of a number), ``feature`` (of several components a direction, which tells them apart
        the better the lower its number), ``distance`` of the conditional probabilities F(x | m) from uniform
        (Kolmogorov-Smirnov), and the ``bound`` that chance, in the fit and the held-out rows, exceeds in 1 % of
        certificates.
    probes : list of dict
        ``target``, ``probe`` ("linear", "forest" or "network"), ``before`` and ``after``, as AUC of groups (one against
        the rest) or R2 of numbers, ``protected``: the score from the preserved columns alone, ``shares``: from the
        clusters' shares alone, and the ``allowed`` score.
    levels : list of dict
        ``where``, ``rows``, ``feature`` (that was farthest from uniform there before), ``before`` and ``after``: shares
        of the rows in 20 equal bins of F given the reference; ``bound`` as above. For
        :func:`residmix.plot_certificate`.
    price : list of dict
        ``what`` (clusters, or a preserved column), ``before`` and ``after``: how well a forest predicts it.
    shares : float or None
        AUC of the groups from the weights of the clusters alone: what "component" leaves, and what "full" removes
        from the clusters.
    failures : list of str
        Failed checks; empty if all passed.
    covariances : str
        Family of the mixture that was chosen.
    n_clusters : int
        Clusters of components that overlap; "component" keeps their shares.
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
    covariances: str = "by-group"
    n_clusters: int = 0

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        clusters = _counted(self.n_clusters, "cluster")
        several = "" if self.n_components == 1 else f" (covariances {self.covariances}) of {clusters}"
        lines = [f"{'passed' if self.passed else 'FAILED'}: {self.method}, "
                 f"{_counted(self.n_components, 'component')}{several}, {self.n_rows} held-out rows"]  # fmt: skip
        lines += [f"  {failure}" for failure in self.failures]
        lines += [f"{'':34}before   after"]
        for row in self.probes:
            name = f"{row['target']}, {row['probe']} ({row['measure']})"
            lines.append(f"  {name:32}{row['before']:6.3f}  {row['after']:6.3f}")
        if self.shares is not None:
            lines.append(f"  {'shares of clusters alone (AUC)':32}{'':6}  {self.shares:6.3f}")
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
    fitted: int,
) -> Certificate:
    """Check a transport, of so many `fitted` rows, on held-out rows x (n, d) with design rows a (n, q)."""
    rows, plain = evenly(len(x), PROBED), transport.plain(len(x))
    compared = _compared(transport, x, a, features, columns, fitted)
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
    clusters = _drawn(own.log_weights, transport.clusters, random)
    probes = _probes(x, y, targets, a[:, transport.n_removed :], clusters, first, method)
    price = []
    labels = transport.cluster_labels(x, a)
    kept: list[tuple[str, NDArray[Any]]] = [("clusters", labels)] if len(np.unique(labels)) > 1 else []
    kept += [(columns[j], a[:, j]) for j in range(transport.n_removed, a.shape[1])][:MOST_NUMBERS]
    for what, values in kept:
        values = (
            values if len(np.unique(values)) > 2 and what != "clusters" else np.unique(values, return_inverse=True)[1]
        )
        scores = [probed("nonlinear", part, values, first) for part in (x, y)]
        if scores[0] is not None and scores[1] is not None:
            price.append({"what": what, "measure": measure_of(values),
                          "before": scores[0].score, "after": scores[1].score})  # fmt: skip
    shares = _shares(clusters, groups) if len(names) > 1 else None
    made = Certificate(
        method, len(rows), own.log_weights.shape[1], candidates, compared.uniform, probes, compared.levels, price,
        shares, covariances=transport.covariances, n_clusters=int(transport.clusters.max()) + 1,
    )  # fmt: skip
    made.failures.extend(_failures(made))
    return made


def _probes(
    x: Floats,
    y: Floats,
    targets: list[tuple[str, NDArray[Any]]],
    protected: Floats,
    clusters: NDArray[np.intp],
    first: NDArray[np.bool_],
    method: str,
) -> list[dict[str, Any]]:
    """Return what probes read of each target in the rows x and where they're moved to, y, and what they may read."""
    z = float(norm.isf(ERROR / max(len(targets) * len(PROBES), 1)))
    made = []
    for target, values in targets:
        # what is preserved may tell of what is erased
        beside = probed("nonlinear", protected, values, first) if protected.shape[1] else None
        shares = _shares(clusters, values)
        for probe, kind in PROBES.items():
            before, after = (probed(kind, part, values, first) for part in (x, y))
            if before is None or after is None:
                continue
            told = [beside.score] if beside else []
            told += [shares] if method == "component" else []
            made.append({
                "target": target, "probe": probe, "measure": measure_of(values), "before": before.score,
                "after": after.score, "protected": beside.score if beside else None, "shares": shares,
                "allowed": _allowed(after, z, measure_of(values), told),
            })  # fmt: skip
    return made


def _allowed(reading: Reading, z: float, measure: str, told: list[float]) -> float:
    """Return the highest score that passes; `told` is what others than the features, that stay, say of the target."""
    chance, left = (0.5, LEFT_AUC) if measure == "AUC" else (0.0, LEFT_R2)
    # predictions of noise have an R2 below 0, which is theirs to keep
    return max([chance, *told]) + left + max(reading.chance - chance + z * reading.error, 0.0)


def _names(transport: Transport, present: NDArray[np.intp], columns: list[str]) -> list[str]:
    """Return the names of groups, those of no level aside."""
    by_group = transport.by_group
    return [
        ", ".join(f"{columns[j]}={value:g}" for j, value in zip(by_group.columns, by_group.patterns[g], strict=True))
        for g in present
        if g < len(by_group.patterns)
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@dataclass(frozen=True)
class _Compared:
    """Distances of F from uniform, by level and feature."""

    uniform: list[dict[str, Any]]
    levels: list[dict[str, Any]]


def _compared(
    transport: Transport, x: Floats, a: Floats, features: list[str], columns: list[str], fitted: int
) -> _Compared:
    """Compare F(x_j | x_<j, m) with the uniform distribution, by group and by thirds of each number."""
    plain = transport.plain(len(x))
    scores = transport.scores(x, a, plain=plain)
    # what the features before a feature determine, to rounding, has no law of its own
    widest = np.diagonal(transport.by_group.factors, axis1=2, axis2=3).max(axis=(0, 1))
    # of what adds up to a direction, since the features in it may cancel but for rounding
    spread = transport.aligned.into(x, a).std(axis=0) @ np.abs(transport.by_group.basis)
    told = np.flatnonzero(scores.std(axis=0) * widest > DETERMINED * spread)
    if not len(told):
        return _Compared([], [])
    own = ndtr(scores)
    reference = ndtr(transport.scores(x, a, plain=plain, of_target=True))
    parts, features = _parts(transport, a, columns), _directions(transport, x, features)
    comparisons = max(len(parts) * x.shape[1], 1)
    made = _Compared([], [])
    for where, rows in parts:
        bound = float(kstwo.isf(ERROR / comparisons, max(int(rows.sum() * fitted / (fitted + len(x))), 1)))
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


def _drawn(log_weights: Floats, clusters: NDArray[np.intp], random: np.random.Generator) -> NDArray[np.intp]:
    """Return a cluster for each row (n,), drawn with its weights."""
    weights = np.exp(log_weights)
    drawn = (random.random((len(weights), 1)) > weights.cumsum(axis=1)).sum(axis=1).clip(max=weights.shape[1] - 1)
    return np.asarray(clusters[drawn], dtype=np.intp)


def _shares(drawn: NDArray[np.intp], target: NDArray[Any]) -> float:
    """Return the AUC, or R2, with which the cluster of a row, of which nothing else is known, tells the target."""
    from sklearn.metrics import r2_score, roc_auc_score

    cells = drawn[:, None] == np.unique(drawn)
    if measure_of(target) == "R2":
        return float(r2_score(target, cells @ ((cells.T @ target) / cells.sum(axis=0))))
    present = np.unique(target)
    rates = np.stack([cells[target == g].mean(axis=0) for g in present], axis=1)
    chance = cells @ (rates / rates.sum(axis=1, keepdims=True))
    if len(present) == 2:
        return float(roc_auc_score(target == present[1], chance[:, 1]))
    return float(roc_auc_score(target, chance, multi_class="ovr"))


def _failures(made: Certificate) -> list[str]:
    failures = [
        f"a held-out {row['probe']} probe still predicts {row['target']} with {row['measure']} {row['after']:.3f} "
        f"(allowed: {row['allowed']:.3f})"
        for row in made.probes
        if row["after"] > row["allowed"]
    ]
    wrong = [row for row in made.uniform if row["distance"] > row["bound"] + LEFT_KS]
    if wrong:
        worst = max(wrong, key=lambda row: row["distance"])
        failures.append(
            f"the mixture doesn't fit p(x | m): for {worst['feature']} at {worst['where']}, F(x | m) is "
            f"{worst['distance']:.3f} from uniform (allowed: {worst['bound'] + LEFT_KS:.3f})"
        )
    return failures
