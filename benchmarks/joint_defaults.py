"""A joint fit with a gate from the first call to the end, starts included, beside the two-stage fit of the same rows.

Run it with ``python benchmarks/joint_defaults.py``. Three components, 6 features; sites shift them and have shares of
their own, and age in every other row. Components lie apart (means of 2.5 standard deviations) or overlap (.8). The
joint fit's mean log-likelihood stands beside that of the parameters that the rows were drawn from: it isn't lower
unless the fit ended at another optimum.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from residmix import ResidualMixture

SHAPES = [(2_000, 2), (20_000, 5), (200_000, 5)]
D, K, ROUNDS = 6, 3, 3


def rows(n, sites, apart):
    """Return rows, their metadata, and their mean log-likelihood under the truth."""
    rng = np.random.default_rng(0)
    site, age = rng.integers(sites, size=n), rng.uniform(20, 80, n)
    means, shift = apart * rng.normal(size=(K, D)), 1.5 * rng.normal(size=(sites, D))
    slope, shares = 0.02 * rng.normal(size=D), rng.dirichlet(np.full(K, 1.5), sites)
    which = (rng.random(n)[:, None] > shares.cumsum(axis=1)[site]).sum(axis=1)
    effect = shift[site] + (age - 50)[:, None] * slope
    X = means[which] + effect + rng.normal(size=(n, D))
    gap = (X - effect)[:, None] - means
    joint = np.log(shares)[site] - 0.5 * (gap**2).sum(axis=2) - 0.5 * D * np.log(2 * np.pi)
    return X, pd.DataFrame({"site": np.array(list("abcde"))[site], "age": age}), float(logsumexp(joint, axis=1).mean())


def fitted(estimation, gating, X, metadata):
    """Return the least seconds of processor time of some fits, and the log-likelihood per row."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        model = ResidualMixture(K, estimation=estimation, gating=gating, random_state=0).fit(X, metadata=metadata)
        seconds.append(time.process_time() - began)
    return min(seconds), model.lower_bound_


def main():
    warnings.simplefilter("ignore")
    X, metadata, _ = rows(20_000, 3, 2.5)
    fitted("joint", "metadata", X, metadata)
    print("seconds of processor time, mean log-likelihood")
    for n, sites in SHAPES:
        for apart in (2.5, 0.8):
            X, metadata, truth = rows(n, sites, apart)
            joint, reached = fitted("joint", "metadata", X, metadata)
            two, _ = fitted("two-stage", "constant", X, metadata)
            print(
                f"{n:>7,} x {D}, {sites} sites, {apart} sd: joint, gated {joint:6.3f} s ({reached:.5f}, truth "
                f"{truth:.5f}), two-stage {two:6.3f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
