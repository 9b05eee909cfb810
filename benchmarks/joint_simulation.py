"""Clusters whose proportions depend on the site: what two stages, joint estimation and joint with gating recover.

Two clusters 4.24 standard deviations apart, two sites, an additive site shift of (3, -3, 2); site 1 has a share p of
cluster 1, site 0 of cluster 0. All models run from their default starts. Prints the mean (and worst) adjusted Rand
index over seeds, and the largest error of the estimated shift.

    python benchmarks/joint_simulation.py --seeds 10

With other numbers of clusters or sites, clusters are 6 standard deviations apart, sites are shifted at random, each has
a share p of one cluster and the rest shared evenly. Then joint estimation runs from the true parameters, too: how
often does the default start end at least as likely?

    python benchmarks/joint_simulation.py --clusters 3 --sites 5 --rows 3000
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
from sklearn.metrics import adjusted_rand_score

from residmix import ResidualMixture
from residmix.mixture.given.gate import make_gate
from residmix.mixture.params import make_params

SHIFT = np.array([3.0, -3.0, 2.0])
MODELS = {
    "two-stage": {"estimation": "two-stage"},
    "joint, constant": {"estimation": "joint"},
    "joint, gating": {"estimation": "joint", "gating": "metadata"},
}


def simulate(share: float, seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (n, 3), site (n,) and cluster (n,)."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 2, n)
    cluster = (rng.random(n) < np.where(site == 1, share, 1 - share)).astype(int)
    X = cluster[:, None] * np.array([3.0, 3.0, 0.0]) + site[:, None] * SHIFT + rng.standard_normal((n, 3))
    return X, site.astype(float), cluster


def simulate_many(
    share: float, seed: int, n: int, clusters: int, sites: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return features (n, d), site (n,), cluster (n,), proportions (sites, clusters) and shifts (sites, d)."""
    rng = np.random.default_rng(seed)
    d = max(3, clusters)
    site = rng.integers(0, sites, n)
    proportions = np.full((sites, clusters), (1 - share) / (clusters - 1))
    proportions[np.arange(sites), np.arange(sites) % clusters] = share
    cluster = (rng.random(n)[:, None] > np.cumsum(proportions, axis=1)[site, :-1]).sum(axis=1)
    shifts = 3.0 * np.random.default_rng(7).standard_normal((sites, d))
    X = 3 * np.sqrt(2.0) * np.eye(clusters, d)[cluster] + shifts[site] + rng.standard_normal((n, d))
    return X, site, cluster, proportions, shifts


class FromTruth(ResidualMixture):
    """Joint estimation that begins at the truth, given as labels and what made them."""

    truth: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]

    def _starts(self, rows):
        X, site, cluster, proportions, shifts = self.truth
        block = rows.take(np.arange(rows.n_rows))
        columns = np.column_stack([block.design, np.ones(rows.n_rows)])
        coef = np.linalg.lstsq(columns, block.X - (X - shifts[site]), rcond=None)[0][:-1]
        rest = block.X - block.design @ coef
        parts = [rest[cluster == k] for k in range(self.n_components)]
        mixture = make_params(
            np.array([len(part) for part in parts]) / len(X),
            np.stack([part.mean(axis=0) for part in parts]),
            np.broadcast_to(np.eye(X.shape[1]), (self.n_components, X.shape[1], X.shape[1])).copy(),
            "full",
        )
        gate = np.linalg.lstsq(columns, np.log(proportions[site]), rcond=None)[0].T
        return [replace(mixture, coef=coef, gate=make_gate(gate - gate.mean(axis=0)))]


def many(asked: argparse.Namespace) -> None:
    """Print the table of default starts against the truth."""
    print(f"{asked.rows} rows, {asked.clusters} clusters, {asked.sites} sites, {asked.seeds} seeds")
    print("| p | ARI mean (worst), default start | from the truth | as likely as from the truth | seconds a fit |")
    print("|---|---|---|---|---|")
    options = {"estimation": "joint", "gating": "metadata"}
    for share in (0.9, 0.97, 0.99):
        found, best, equal, seconds = [], [], 0, 0.0
        for seed in range(asked.seeds):
            X, site, cluster, proportions, shifts = simulate_many(share, seed, asked.rows, asked.clusters, asked.sites)
            metadata = np.array([f"site {s}" for s in site])
            began = time.perf_counter()
            model = ResidualMixture(asked.clusters, random_state=seed, **options).fit(X, metadata=metadata)
            seconds += time.perf_counter() - began
            ideal = FromTruth(asked.clusters, **options)
            ideal.truth = X, site, cluster, proportions, shifts
            ideal.fit(X, metadata=metadata)
            found.append(adjusted_rand_score(cluster, model.predict(X, metadata=metadata)))
            best.append(adjusted_rand_score(cluster, ideal.predict(X, metadata=metadata)))
            equal += model.lower_bound_ > ideal.lower_bound_ - 1e-4
        print(
            f"| {share} | {np.mean(found):.2f} ({min(found):.2f}) | {np.mean(best):.2f} ({min(best):.2f}) | "
            f"{equal} of {asked.seeds} | {seconds / asked.seeds:.2f} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--clusters", type=int, default=2)
    parser.add_argument("--sites", type=int, default=2)
    asked = parser.parse_args()
    if (asked.clusters, asked.sites) != (2, 2):
        many(asked)
        return
    print(f"{asked.rows} rows, {asked.seeds} seeds: ARI mean (worst), error of the shift, seconds a fit")
    print("| P(cluster 1, site 1) | " + " | ".join(MODELS) + " |\n|" + "---|" * (len(MODELS) + 1))
    for share in (0.5, 0.7, 0.9, 0.97):
        cells = []
        for options in MODELS.values():
            agreement, error, began = [], [], time.perf_counter()
            for seed in range(asked.seeds):
                X, site, cluster = simulate(share, seed, asked.rows)
                model = ResidualMixture(2, random_state=seed, **options).fit(X, metadata=site)
                agreement.append(adjusted_rand_score(cluster, model.predict(X, metadata=site)))
                error.append(np.abs(model.coef_[0] - SHIFT).max())
            seconds = (time.perf_counter() - began) / asked.seeds
            cells.append(f"{np.mean(agreement):.2f} ({min(agreement):.2f}), {np.mean(error):.2f}, {seconds:.2f} s")
        print(f"| {share} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
