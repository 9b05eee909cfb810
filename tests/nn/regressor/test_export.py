"""MDNRegressor.to_onnx: another runtime computes the same density."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch.torch_version import TorchVersion

from residmix.errors import MissingExtraError
from residmix.nn import MDNRegressor

TINY = {"n_members": 2, "n_components": 2, "max_epochs": 3, "hidden": (8,), "random_state": 0}
QUIET = pytest.mark.filterwarnings(
    "ignore::residmix.errors.ResidmixWarning", "ignore::sklearn.exceptions.ConvergenceWarning"
)
OUTPUTS = {"scales": "scale", "scale_tril": "scale_tril", "factor": "factor", "logits": "logits", "means": "means"}


def table(n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    age = rng.normal(50, 10, size=(n, 2))
    X = 100 + 3 * rng.normal(size=(n, 3)) + 0.1 * age[:, :1]
    y = 1e3 * (X[:, :2] + rng.normal(size=(n, 2)))
    return X, y, age


@QUIET
@pytest.mark.skipif(TorchVersion(torch.__version__) < "2.6", reason="to_onnx needs torch 2.6, as the extra onnx says")
@pytest.mark.parametrize(
    ("covariance", "space", "inputs", "spread"),
    [
        ("diagonal", None, {"x"}, {"scales"}),
        ("diagonal", "sample", {"x", "metadata"}, {"scales"}),
        ("low-rank", "feature", {"x"}, {"scales", "factor"}),
        ("full", "sample", {"x", "metadata"}, {"scale_tril"}),
    ],
)
@pytest.mark.slow
def test_onnxruntime_computes_the_parameters_of_predict_distribution(
    covariance, space, inputs, spread, tmp_path, capfd
) -> None:
    X, y, age = table()
    metadata = None if space is None else age
    model = MDNRegressor(covariance=covariance, space=space or "sample", **TINY).fit(X, y, metadata=metadata)
    model.to_onnx(tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # weights are inside, no leftovers
    assert capfd.readouterr().out == ""
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert {item.name for item in session.get_inputs()} == inputs
    names = [item.name for item in session.get_outputs()]
    assert set(names) == {"logits", "means", *spread}
    for rows in (slice(0, 1), slice(0, 7), slice(0, 120)):
        given = {"x": X[rows]}
        if "metadata" in inputs:
            given["metadata"] = model.design_.matrix(age[rows]).dense
        density = model.predict_distribution(X[rows], metadata=None if metadata is None else age[rows])
        for name, value in zip(names, session.run(names, given), strict=True):
            # float64 on both sides; a single float32 constant on the way shows as 1e-9.
            np.testing.assert_allclose(value, getattr(density, OUTPUTS[name]), rtol=1e-10, atol=1e-10, err_msg=name)


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    X, y, _ = table(40)
    model = MDNRegressor(**{**TINY, "max_epochs": 0}).fit(X, y)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"residmix\[onnx\]"):
        model.to_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
