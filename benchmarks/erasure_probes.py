"""What forests and networks still read of metadata after least squares and after transports, over seeds.

python benchmarks/erasure_probes.py --seeds 20
python benchmarks/erasure_probes.py --only age
python benchmarks/erasure_probes.py --only wide --first 10 --seeds 5 --to seeds.jsonl  # in pieces; then
python benchmarks/erasure_probes.py --tables seeds.jsonl
python benchmarks/erasure_probes.py --only wide --given --sets 4  # as many clusters as there are; chance of the probes
python benchmarks/erasure_probes.py --too-small --seeds 5  # certificates of one component, which is too few

Erasers are fitted on some rows, and judged on as many others: half of these train the probe, half are read. ``truth``
is what the same probes read of the same rows without anything that metadata do, but for the proportions of clusters:
what "component" must leave. How far it is from that hangs on the rows that are read, too: with ``--sets`` the same fit
is read on several sets of rows, and the standard deviation between these is printed. ``cluster`` is what a forest reads
of the true cluster, and ``lost`` how much less than before. ``ill`` is what a forest reads of a protected effect that
is associated with what is erased, after a linear eraser that preserves it (least squares in two dimensions, which have
no direction left for an eraser to keep), and after "full".
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import residmix as rm
from residmix.errors import CertificateWarning

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """Rows, these without what metadata do within clusters, what is to be erased, and the cluster of each row."""

    x: Floats
    alike: Floats
    metadata: pd.DataFrame
    formula: str
    target: NDArray[Any]
    cluster: NDArray[Any]


def experiment(rng: np.random.Generator, n: int) -> Drawn:
    """Two sites that differ in proportions, location, spread, shape (a power of 1.6) and correlation; d = 4."""
    mixing = np.random.default_rng(0).normal(size=(4, 4))
    site = rng.integers(2, size=n)
    kind = rng.random(n) < np.where(site == 0, 0.7, 0.3)
    x = rng.normal(size=(n, 4))
    x[:, 0] += np.where(kind, 2.5, -2.5)
    alike = x @ mixing
    x[:, 1] *= np.where(site == 0, 1, 1.8)
    x[:, 2] = np.where(site == 0, x[:, 2], np.sign(x[:, 2]) * np.abs(x[:, 2]) ** 1.6)
    x[:, 3] += np.where(site == 0, 0.6, -0.6) * x[:, 0] + site
    return Drawn(x @ mixing, alike, pd.DataFrame({"site": np.where(site == 1, "B", "A")}), "C(site)", site, kind)


def wide(rng: np.random.Generator, n: int) -> Drawn:
    """Three sites, three clusters of other places, shapes and shares at each; d = 20."""
    truth = np.random.default_rng(1)
    d, means = 20, 1.2 * truth.normal(size=(3, 20))
    shift = 0.3 * truth.normal(size=(3, 3, d))
    factors = np.eye(d) * np.array([0.75, 1, 1.35])[:, None, None] + 0.12 * truth.normal(size=(3, d, d))
    weights = np.array([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.3, 0.2, 0.5]])
    site = rng.integers(3, size=n)
    cluster = (rng.random((n, 1)) > weights[site].cumsum(axis=1)).sum(axis=1)
    e = rng.normal(size=(n, d))
    x = np.einsum("nj,njk->nk", e, factors[site]) + means[cluster] + shift[site, cluster]
    return Drawn(x, e + means[cluster], pd.DataFrame({"site": np.array(list("ABC"))[site]}), "C(site)", site, cluster)


def age(rng: np.random.Generator, n: int) -> Drawn:
    """Location, spread and shares of two clusters vary with age, and sex stretches one of them; d = 8."""
    truth = np.random.default_rng(2)
    d, direction = 8, truth.normal(size=8)
    years, sex = rng.uniform(20, 80, n), rng.integers(2, size=n)
    t = (years - 50) / 30
    cluster = rng.random(n) < 0.5 + 0.2 * t
    e = rng.normal(size=(n, d))
    x = e * np.exp(0.6 * t)[:, None]
    x[:, :2] *= np.where(sex == 1, 1.5, 1)[:, None]
    place = np.where(cluster, 3.0, -3.0)[:, None] * direction / np.linalg.norm(direction)
    x += place + t[:, None] * truth.normal(size=d)
    metadata = pd.DataFrame({"age": years, "sex": np.where(sex == 1, "m", "f")})
    return Drawn(x, e + place, metadata, "age + C(sex)", t, cluster)


def plane(rng: np.random.Generator, n: int) -> Drawn:
    """Two scanners of other proportions, location, spread, skewness and correlation, crossed with coils; d = 2."""
    scanner, coil = rng.integers(2, size=n), rng.integers(2, size=n)
    cluster = rng.random(n) < 0.6 - 0.3 * scanner + 0.1 * coil
    e, place = rng.normal(size=(n, 2)), np.where(cluster, 1.0, -1.0)[:, None] * np.array([3.0, 1.5])
    wide = np.where(scanner == 0, e[:, 0], np.expm1(0.4 * e[:, 0]) / 0.4)
    x = np.column_stack([wide, np.where(scanner == 0, 1, 0.4) * e[:, 1] + np.where(scanner == 0, 1, -1) * wide])
    x = x * np.where(coil == 0, 1, 1.3)[:, None] + place + scanner[:, None] * np.array([0.8, -0.5])
    metadata = pd.DataFrame({"scanner": np.where(scanner == 1, "B", "A"), "coil": np.where(coil == 1, "head", "neck")})
    return Drawn(x, e + place, metadata, "C(scanner) + C(coil)", scanner, cluster)


GENERATORS: dict[str, Callable[[np.random.Generator, int], Drawn]] = {
    "experiment": experiment,
    "wide": wide,
    "age": age,
    "plane": plane,
}


def read(kind: str, x: Floats, target: NDArray[Any]) -> float:
    """Return the AUC, or the R2, with which a probe that learned on one half of the rows reads the other."""
    half, numbers = len(x) // 2, target.dtype.kind == "f"
    if kind == "forest":
        options = {"n_estimators": 150, "min_samples_leaf": 5, "random_state": 0}
        model = RandomForestRegressor(max_features=1 / 3, **options) if numbers else RandomForestClassifier(**options)
    else:
        layers = {"hidden_layer_sizes": (64, 64), "max_iter": 150, "early_stopping": True, "random_state": 0}
        model = MLPRegressor(**layers) if numbers else MLPClassifier(**layers)
    fitted = make_pipeline(StandardScaler(), model).fit(x[:half], target[:half])
    if numbers:
        return float(r2_score(target[half:], fitted.predict(x[half:])))
    said = fitted.predict_proba(x[half:])
    said = said[:, 1] if said.shape[1] == 2 else said
    return float(roc_auc_score(target[half:], said, multi_class="ovr"))


def shares(known: Drawn, later: Drawn) -> float:
    """Return what the true cluster alone says of the target."""
    if known.target.dtype.kind == "f":
        means = [known.target[known.cluster == c].mean() for c in (0, 1)]
        return float(r2_score(later.target, np.where(later.cluster, means[1], means[0])))
    groups = np.unique(known.target)
    table = np.array(
        [[(known.cluster[known.target == g] == c).mean() for g in groups] for c in np.unique(known.cluster)]
    )
    said = (table / table.sum(axis=1, keepdims=True))[later.cluster.astype(int)]
    return float(roc_auc_score(later.target, said[:, 1] if len(groups) == 2 else said, multi_class="ovr"))


def moved_by(method: str, known: Drawn, later: Drawn, full: rm.Eraser) -> Floats:
    """Return the later rows as a method leaves them. "component" is the transport of "full" with other weights."""
    if method in {"nothing", "truth"}:
        return later.x if method == "nothing" else later.alike
    if method == "least squares":
        fitted = rm.Residualizer(known.formula).fit(known.x, metadata=known.metadata)
        return np.asarray(fitted.transform(later.x, metadata=later.metadata))
    if method == "linear eraser":
        return np.asarray(rm.Eraser(known.formula).fit(known.x, metadata=known.metadata).transform(later.x))
    design = np.asarray(full.design_.matrix(later.metadata).dense, dtype=np.float64)
    return replace(full.transport_, keeps_shares=method == "component").forward(later.x, design)


METHODS = ("nothing", "least squares", "truth", "component", "full")
CLUSTERS = {"experiment": 2, "wide": 3, "age": 2, "plane": 2}


def main() -> None:
    """Compute seeds, and print a table a generator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=8000, help="of fit, and as many to judge on")
    parser.add_argument("--sets", type=int, default=1, help="of rows to judge on, for component less truth")
    parser.add_argument("--given", action="store_true", help="the number of clusters isn't chosen")
    parser.add_argument("--too-small", action="store_true", help="only count the certificates of one component")
    parser.add_argument("--only", choices=[*GENERATORS, "noise"])
    parser.add_argument("--to", type=Path, help="file that gets a line a seed, as JSON")
    parser.add_argument("--tables", type=Path, help="print the tables of such a file")
    asked = parser.parse_args()
    if asked.tables:
        tables([json.loads(line) for line in asked.tables.read_text().splitlines()])
        return
    for name in [asked.only] if asked.only else [*GENERATORS, "noise"]:
        if asked.too_small:
            if name != "noise":
                too_small(name, range(asked.first, asked.first + asked.seeds), asked.rows)
            continue
        found = []
        for seed in range(asked.first, asked.first + asked.seeds):
            if name == "noise":
                found.append(noise(name, seed, asked.rows))
            else:
                found.append(one(name, seed, asked.rows, asked.sets, asked.given))
            if asked.to:
                with asked.to.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
        tables(found)


def one(name: str, seed: int, n: int, sets: int, given: bool) -> dict[str, Any]:
    """Return what probes read of one seed."""
    rng = np.random.default_rng(100 + seed)
    known, later = GENERATORS[name](rng, n), GENERATORS[name](rng, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificateWarning)
        full = rm.Eraser(known.formula, method="full", n_components=CLUSTERS[name] if given else "auto",
                         random_state=seed).fit(known.x, metadata=known.metadata)  # fmt: skip
    found: dict[str, Any] = {
        "generator": name, "seed": seed, "rows": n, "features": known.x.shape[1],
        "measure": "R2" if known.target.dtype.kind == "f" else "AUC", "shares": shares(known, later),
        "components": full.certificate_.n_components, "clusters": full.certificate_.n_clusters,
        "failures": full.certificate_.failures,
    }  # fmt: skip
    for method in METHODS:
        x = moved_by(method, known, later, full)
        found[method] = [*(read(kind, x, later.target) for kind in ("forest", "network")),
                         read("forest", x, later.cluster)]  # fmt: skip
    found["gaps"] = [[found["component"][j] - found["truth"][j] for j in (0, 1)]]
    for again in range(1, sets):
        found["gaps"].append(gaps(known, GENERATORS[name](np.random.default_rng((seed, again)), n), full))
    found["ill"] = protected(name, known, later, seed)
    return found


def too_small(name: str, seeds: range, n: int) -> None:
    """Print how many certificates one component passes, and what its probes read above an AUC of .5 or an R2 of 0."""
    made = []
    for seed in seeds:
        known = GENERATORS[name](np.random.default_rng(100 + seed), n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CertificateWarning)
            eraser = rm.Eraser(known.formula, method="full", n_components=1, random_state=seed)
            made.append(eraser.fit(known.x, metadata=known.metadata).certificate_)
    over = [max(row["after"] - 0.5 * (row["measure"] == "AUC") for row in one.probes) for one in made]
    passed = sum(one.passed for one in made)
    print(f"{name}: one component, {passed} of {len(made)} certificates passed; the best of its probes is "
          f"{np.mean(over):.3f} ({min(over):.3f} to {max(over):.3f}) over chance", flush=True)  # fmt: skip


def gaps(known: Drawn, later: Drawn, full: rm.Eraser) -> list[float]:
    """Return how much more forest and network read of the later rows after "component" than of the truth."""
    moved = moved_by("component", known, later, full)
    return [read(kind, moved, later.target) - read(kind, later.alike, later.target) for kind in ("forest", "network")]


def protected(name: str, known: Drawn, later: Drawn, seed: int) -> list[float]:
    """Return the AUC of an effect of interest that is likelier where the target is high: after "linear" and "full"."""
    rng, halves = np.random.default_rng(900 + seed), []
    for part in (known, later):
        high = part.target > np.median(part.target) if part.target.dtype.kind == "f" else part.target > 0
        ill = rng.random(len(high)) < np.where(high, 0.6, 0.4)
        push = 0.6 * part.x.std(axis=0) * np.random.default_rng(3).normal(size=part.x.shape[1])
        halves.append((part.x + ill[:, None] * push / np.sqrt(len(push)), part.metadata.assign(ill=ill * 1.0), ill))
    (x, metadata, _), (x_later, metadata_later, ill) = halves
    said = []
    formula = known.formula
    linear = rm.Residualizer(formula, preserve="ill") if name == "plane" else rm.Eraser(formula, preserve="ill")
    full = rm.Eraser(formula, preserve="ill", method="full", n_components=CLUSTERS[name], random_state=seed)
    for eraser in (linear, full):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CertificateWarning)
            eraser.fit(x, metadata=metadata)
        said.append(read("forest", np.asarray(eraser.transform(x_later, metadata=metadata_later)), ill))
    return said


def tables(found: list[dict[str, Any]]) -> None:
    """Print means (and worst) over seeds of what probes read, and of what clusters and the protected effect lost."""
    for name in dict.fromkeys(row["generator"] for row in found):
        rows = [row for row in found if row["generator"] == name]
        first = rows[0]
        if name == "noise":
            values = np.array([row["full"] for row in rows])
            print(f"\nnoise: {first['rows']} rows, d = 6, {len(rows)} seeds; AUC of a label that the site tells, mean "
                  "(worst)")  # fmt: skip
            print(f"{'full, in folds':16}" + "".join(f"{v.mean():8.3f} ({v.max():.3f})".rjust(16) for v in values.T))
            continue
        print(f"\n{name}: {first['rows']} rows, d = {first['features']}, {len(rows)} seeds; {first['measure']}, mean "
              f"(worst); the shares alone: {np.mean([row['shares'] for row in rows]):.3f}")  # fmt: skip
        print(f"{'':16}{'forest':>16}{'network':>16}{'cluster':>10}{'lost':>9}")
        before = np.array([row["nothing"] for row in rows])[:, 2]
        for method in METHODS:
            values = np.array([row[method] for row in rows])
            cells = "".join(f"{values[:, j].mean():8.3f} ({values[:, j].max():.3f})".rjust(16) for j in (0, 1))
            print(f"{method:16}{cells}{values[:, 2].mean():10.3f}{(before - values[:, 2]).mean():9.4f}", flush=True)
        sizes = [row["components"] for row in rows]
        counts = ", ".join(f"{k} ({sizes.count(k)})" for k in sorted(set(sizes)))
        print(f"components (seeds): {counts}; {sum(not row['failures'] for row in rows)} of {len(rows)} certificates "
              "passed")  # fmt: skip
        told = [np.array(row["gaps"]) for row in rows]
        means = np.array([gap.mean(axis=0) for gap in told])
        print("component less truth, mean (farthest): " + ", ".join(
            f"{what} {gap.mean():.4f} ({gap[np.abs(gap).argmax()]:.4f})"
            for what, gap in zip(("forest", "network"), means.T, strict=True)))  # fmt: skip
        if len(told[0]) > 1:
            chance = np.sqrt(np.mean([gap.var(axis=0, ddof=1) for gap in told], axis=0))
            print(f"  each seed on {len(told[0])} sets of rows, standard deviation of one: forest {chance[0]:.4f}, "
                  f"network {chance[1]:.4f}")  # fmt: skip
        ill = np.array([row["ill"] for row in rows])
        print(f"protected effect, AUC: linear {ill[:, 0].mean():.3f}, full {ill[:, 1].mean():.3f}, lost "
              f"{(ill[:, 0] - ill[:, 1]).mean():.4f} ({(ill[:, 0] - ill[:, 1]).max():.4f})")  # fmt: skip


def noise(name: str, seed: int, n: int) -> dict[str, Any]:
    """Return what probes read of a label from pure noise that was transported in folds, the label told by the site."""
    rng = np.random.default_rng(500 + seed)
    x, site = rng.normal(size=(n, 6)), rng.integers(4, size=n)
    label = rng.random(n) < np.array([0.1, 0.3, 0.7, 0.9])[site]
    metadata, moved, fold = pd.DataFrame({"site": np.array(list("ABCD"))[site]}), np.empty_like(x), np.arange(n) % 2
    for held in (0, 1):
        fitted = rm.Eraser("C(site)", method="full", random_state=seed).fit(
            x[fold != held], metadata=metadata[fold != held]
        )
        moved[fold == held] = fitted.transform(x[fold == held], metadata=metadata[fold == held])
    return {"generator": name, "seed": seed, "rows": n,
            "full": [read(kind, moved, label) for kind in ("forest", "network")]}  # fmt: skip


if __name__ == "__main__":
    main()
