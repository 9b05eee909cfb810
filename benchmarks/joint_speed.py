"""What a pass of joint estimation costs beside a pass of the plain mixture, on the same rows.

python benchmarks/joint_speed.py --rows 200000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from residmix.mixture.given.gate import make_gate
from residmix.mixture.iteration.estep import mixture_block_rows
from residmix.mixture.iteration.groups import with_groups
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import make_params
from residmix.rows.rows import ArrayRows

# Groups of rows, each with covariances of its own.
GROUPS = 5


def seconds_a_pass(em: Callable[..., tuple[float, object]], params: object, passes: int = 8) -> float:
    """Return the shortest of some passes, after two to compile and to compute what later passes reuse."""
    best = np.inf
    for i in range(passes + 2):
        began = time.perf_counter()
        _, params = em(params)
        best = min(best, time.perf_counter() - began) if i >= 2 else best
    return float(best)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 200_000), ("features", 8), ("metadata", 10), ("components", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    n, d, q, K = asked.rows, asked.features, asked.metadata, asked.components
    rng = np.random.default_rng(0)
    u, means = rng.standard_normal((n, q)), 2.0 * rng.standard_normal((K, d))
    X = means[rng.integers(0, K, n)] + u @ rng.standard_normal((q, d)) + rng.standard_normal((n, d))
    mixture = make_params(np.full(K, 1 / K), means, np.repeat(4.0 * np.eye(d)[None], K, axis=0), "full")
    rows = ArrayRows(X, u, block_rows=mixture_block_rows(d, K))
    coef = np.zeros((q, d))
    plain = seconds_a_pass(MixtureEM(rows, 1e-6), mixture)
    constant = seconds_a_pass(MixtureEM(rows, 1e-6), replace(mixture, coef=coef))
    gated = seconds_a_pass(MixtureEM(rows, 1e-6), replace(mixture, coef=coef, gate=make_gate(np.zeros((K, q + 1)))))
    own_terms = replace(mixture, coef=coef, gate=make_gate(np.zeros((K, q // 2 + 1))))
    apart = seconds_a_pass(MixtureEM(rows, 1e-6), own_terms)
    codes = rng.integers(0, GROUPS, n)
    own = with_groups(replace(mixture, coef=coef), np.full((GROUPS, K), 1 / (GROUPS * K)), np.arange(GROUPS))
    by_rows = ArrayRows(X, u, (codes,), block_rows=mixture_block_rows(d, K))
    by_group = seconds_a_pass(MixtureEM(by_rows, 1e-6), own)
    print(f"{n} x {d}, {q} metadata columns, {K} components, full covariances")
    for name, value in (
        ("plain mixture", plain),
        ("joint", constant),
        ("joint, gating", gated),
        ("joint, gating by half", apart),
        (f"covariances of {GROUPS} sites", by_group),
    ):
        print(f"{name:24s} {value * 1e3:7.1f} ms a pass  {value / plain:5.2f} x")


if __name__ == "__main__":
    main()
