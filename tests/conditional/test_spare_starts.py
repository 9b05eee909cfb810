"""Two stages that end in a component on a few rows give way to the next best start."""

import numpy as np
import pytest

import residmix as rm
from residmix.conditional.starts import search as starts
from residmix.errors import DegenerateComponentWarning
from residmix.mixture.starts.labels import params_of_labels
from residmix.rows.rows import ArrayRows

RNG = np.random.default_rng(0)
TRUTH, SEX = np.repeat([0, 1], 60), np.tile([0.0, 1.0], 60)
X = np.array([[0.0, 0.0], [6.0, 0.0]])[TRUTH] + RNG.normal(size=(120, 2))
X[2] = X[4] = X[0]  # of one sex: their residuals are equal, too


@pytest.mark.parametrize("gating", ["constant", "metadata"])
def test_a_fit_on_a_few_rows_gives_way_to_the_next_best_start(monkeypatch, gating):
    residual = rm.Residualizer().fit_transform(X, metadata=SEX)
    spike = np.where(np.isin(np.arange(120), [0, 2, 4]), 1, 0)
    begun = [
        params_of_labels(ArrayRows(residual), labels, 2, covariance_type="full", reg_covar=1e-6)
        for labels in (spike, TRUTH)
    ]
    monkeypatch.setattr(starts, "find_starts", lambda *given, **options: list(begun))
    model = rm.ResidualMixture(2, gating=gating).fit(X, metadata=SEX)
    assert model.notes_ == []
    assert min(model.weights_) > 0.4
    # the control: without another start there is no way out
    monkeypatch.setattr(starts, "find_starts", lambda *given, **options: begun[:1])
    with pytest.warns(DegenerateComponentWarning):
        assert min(rm.ResidualMixture(2, gating=gating).fit(X, metadata=SEX).weights_) < 0.1
