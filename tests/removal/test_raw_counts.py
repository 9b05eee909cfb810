"""Raw counts are told of, whatever a tree reads from their residuals; whole numbers of other kinds aren't."""

import numpy as np
import pytest

import residmix as rm
from residmix.removal.lattices import raw_counts


def test_counts_of_genes_are_noted_with_what_to_do():
    rng = np.random.default_rng(0)
    site = rng.integers(0, 2, 400)
    # of many values, so that a tree reads no site from the steps between them
    X = rng.negative_binomial(0.8, 0.0005, size=(400, 8)).astype(float)
    model = rm.Residualizer("C(m0)").fit(X, metadata=site)
    told = [note for note in model.notes_ if "ComBat-seq" in note["message"]]
    assert len(told) == 1 and told[0]["kind"] in ("raw-counts", "leakage")
    logs = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4)
    assert not [
        note for note in rm.Residualizer("C(m0)").fit(logs, metadata=site).notes_ if note["kind"] == "raw-counts"
    ]


def counted(rng):
    return rng.negative_binomial(0.5, 0.02, size=(300, 6)).astype(float)


@pytest.mark.parametrize(
    ("name", "made", "raw"),
    [
        ("overdispersed", counted, True),
        ("with gaps", lambda rng: np.where(rng.random((300, 6)) < 0.1, np.nan, counted(rng)), True),
        ("answers on a scale", lambda rng: rng.integers(0, 5, size=(300, 6)), False),
        ("grams", lambda rng: np.round(rng.normal(4000, 800, size=(300, 6))), False),
        ("Poisson", lambda rng: rng.poisson(4.0, size=(300, 6)), False),
        ("few features", lambda rng: counted(rng)[:, :2], False),
    ],
)
def test_what_looks_like_raw_counts(name, made, raw):
    assert raw_counts(made(np.random.default_rng(1))).all() == raw, name


def test_one_column_of_counts_amid_others_is_no_table_of_counts():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(300, 6))
    X[:, 0] = rng.negative_binomial(0.5, 0.02, size=300)
    assert not raw_counts(X).any()
