"""Covariances that no memory can hold are refused before any of it is asked for."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.mixture.robust import settings


@pytest.mark.parametrize("kind", ["full", "tied", "VEV", "factor"])
def test_covariances_larger_than_the_machine_are_refused_without_taking_memory(kind, monkeypatch):
    monkeypatch.setattr(settings, "machine_bytes", lambda: 24e9)
    X = np.zeros((4, 100_000), dtype=np.float32)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"covariances of 100,000 features take 160 GB for 1 component, and this mach"):
        rm.GaussianMixture(1, covariance_type=kind, n_factors=2 if kind == "factor" else None).fit(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * X.nbytes


def test_the_mixture_given_metadata_refuses_them_too(monkeypatch, rng):
    monkeypatch.setattr(settings, "machine_bytes", lambda: 1e6)
    table = pd.DataFrame(rng.normal(size=(300, 200)), columns=[f"x{j}" for j in range(200)]).assign(
        site=np.tile(["a", "b"], 150)
    )
    with pytest.raises(ValueError, match=r"full covariances of 200 features take 1\.28 MB"):
        rm.ResidualMixture(2, formula="site").fit(table)
    fitted = rm.ResidualMixture(2, formula="site", covariance_type="diag", random_state=0).fit(table)
    assert fitted.covariances_.shape == (2, 200)


def test_the_control_has_room(rng):
    assert rm.GaussianMixture(1).fit(rng.normal(size=(300, 200))).covariances_.shape == (1, 200, 200)


def test_a_diagonal_mixture_is_described_without_matrices():
    X = np.random.default_rng(0).normal(size=(8, 20_000))
    model = rm.ResidualMixture(1, covariance_type="diag").fit(X, metadata=np.arange(8.0))
    tracemalloc.start()
    text = model.summary()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "and 19988 more features" in text
    assert peak < 20 * X.nbytes  # a matrix would take 3.2 GB
