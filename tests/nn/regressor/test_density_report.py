"""MDNRegressor with metadata, the network that joins layer and head, and the report on a density."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression

import residmix
from residmix.nn import MDNRegressor, MixtureDensityHead, MixtureDensityNetwork, Residualize
from residmix.nn.density.network import DenseTrunk
from residmix.nn.regressor.report import density_report

pytestmark = pytest.mark.filterwarnings(
    "ignore::residmix.errors.ResidmixWarning", "ignore::sklearn.exceptions.ConvergenceWarning"
)
SMALL = {"n_members": 2, "max_epochs": 15, "hidden": (16,), "random_state": 0}


def confounded(n: int = 300, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Features that hold the signal and, much louder, the age; the target doesn't depend on age."""
    rng = np.random.default_rng(seed)
    age, signal = rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    X = np.hstack([signal + 2 * age, signal - 2 * age, rng.normal(size=(n, 1))])
    return X, signal[:, 0] + 0.5 * rng.normal(size=n), age


def r2(age: np.ndarray, value: np.ndarray) -> float:
    return float(np.corrcoef(age.ravel(), value.ravel())[0, 1] ** 2)


@pytest.mark.parametrize("space", ["sample", "feature"])
def test_what_enters_the_head_is_uncorrelated_with_the_metadata_on_the_training_rows(space) -> None:
    X, y, age = confounded()
    model = MDNRegressor(protect_target=False, space=space, **SMALL).fit(X, y, metadata=age)
    z = torch.from_numpy((X - X.mean(0)) / X.std(0))
    m = torch.from_numpy((age - age.mean()) / age.std())
    with torch.no_grad():
        h = model.network_.representation(z, m)
        raw = model.network_.backbone(z)

    def worst(t: torch.Tensor) -> float:
        gap = t - t.mean(1, keepdim=True)
        # Columns that are constant up to rounding have no correlation to speak of.
        correlation = (gap * m).mean(1) / (gap.square().mean(1).sqrt() + 1e-6)
        return float(correlation.abs().max())

    # The rows were given to the layer in float32, whose rounding is 6e-8.
    assert worst(h) < 1e-5
    assert worst(raw) > 0.5  # control: the trunk before the layer


def test_one_table_with_a_formula_gives_the_same_numbers_as_arrays() -> None:
    X, y, age = confounded(120)
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(age=age)
    one = MDNRegressor("age", **SMALL).fit(frame, y)
    two = MDNRegressor(**SMALL).fit(X, y, metadata=age)
    np.testing.assert_allclose(one.predict(frame), two.predict(X, metadata=age), rtol=1e-9)
    assert list(one.feature_names_in_) == ["a", "b", "c"]


def test_metadata_are_asked_for_where_they_are_needed_only(tmp_path) -> None:
    X, y, age = confounded(120)
    sample = MDNRegressor(**SMALL).fit(X, y, metadata=age)
    with pytest.raises(ValueError, match="pass metadata= to predict"):
        sample.predict(X)
    feature = MDNRegressor(space="feature", **SMALL).fit(X, y, metadata=age)
    np.testing.assert_allclose(feature.predict(X), feature.predict(X, metadata=age))
    with pytest.raises(ValueError, match="fitted without"):
        MDNRegressor(**SMALL).fit(X, y).predict(X, metadata=age)
    residmix.save(sample, tmp_path / "m.safetensors")
    back = residmix.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(back.predict(X, metadata=age), sample.predict(X, metadata=age))


def test_a_network_without_the_layer_refuses_metadata_and_with_it_uses_them() -> None:
    trunk, head = DenseTrunk(3, (8,)), MixtureDensityHead(11, 1)
    plain = MixtureDensityNetwork(trunk, head)
    with pytest.raises(ValueError, match="no residualize layer"):
        plain(torch.zeros(4, 3), torch.zeros(4, 1))
    network = MixtureDensityNetwork(trunk, head, Residualize(11, 1, num_protected=1))
    x, m, y = torch.randn(64, 3), torch.randn(64, 1), torch.randn(64, 1)
    loss = -network(x, m, y).log_prob(y).mean()
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in network.parameters())


def test_the_representation_contains_the_input_and_far_rows_cannot_throw_the_perceptron() -> None:
    trunk = DenseTrunk(2, (8,), dropout=0.0)
    x = torch.tensor([[1e8, -1e8], [0.5, 0.1]])
    h = trunk(x)
    torch.testing.assert_close(h[:, -2:], x)
    assert h[0, :-2].abs().max() < 1e3


def test_the_report_finds_metadata_in_mean_and_spread_and_not_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 2))
    site = (X[:, 1] > 0).astype(float)  # the spread of the target depends on it, its mean does not
    y = X[:, 0] + np.where(site == 1, 1.5, 0.3) * rng.normal(size=500)
    model = MDNRegressor(n_components=1, **{**SMALL, "max_epochs": 60}).fit(X, y)
    report = density_report(model, X, y, site)
    explained = report["explained"]
    assert explained["spread"] > 0.5 and explained["entropy"] > 0.5
    assert explained["mean"] < 0.05
    assert set(report["strata"]) == {0.0, 1.0} and sum(s["rows"] for s in report["strata"].values()) == 500
    nothing = density_report(model, X, y, rng.normal(size=(500, 1)))["explained"]
    # R2 of one irrelevant column over 500 rows is about 1/500; 0.02 is its 99.8 % point.
    assert max(nothing.values()) < 0.02


def test_deconfounding_lowers_what_metadata_explain_and_its_cost_is_reported() -> None:
    X, y, age = confounded()
    y = y + age[:, 0]
    plain = MDNRegressor(**SMALL).fit(X, y)
    clean = MDNRegressor(protect_target=False, **SMALL).fit(X, y, metadata=age)
    before = density_report(plain, X, y, age)["explained"]["mean"]
    after = density_report(clean, X, y, age, model_metadata=age, reference=plain)
    assert before > 0.3
    assert after["explained"]["mean"] < 0.1
    assert after["cost"]["crps"] > 2 * after["cost"]["std_error"]  # age did predict y, so removing it must cost


def test_models_of_several_targets_are_refused() -> None:
    X, y, age = confounded(60)
    model = MDNRegressor(**SMALL).fit(X, np.column_stack([y, -y]))
    with pytest.raises(ValueError, match="one target"):
        density_report(model, X, y, age)


def test_the_report_takes_frames_with_text_and_gives_them_to_the_model_where_it_needs_them() -> None:
    X, y, age = confounded(90)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    metadata = pd.DataFrame({"site": np.where(age[:, 0] > 0, "x", "z"), "age": age[:, 0]})
    apart = MDNRegressor(**SMALL).fit(frame, y, metadata=metadata)
    report = density_report(apart, frame, y, metadata)
    assert list(report["strata"]) == ["x", "z"] and report["by_chance"] == pytest.approx(2 / 89)
    assert report == density_report(apart, frame, y, metadata, model_metadata=metadata)
    # One table: the model finds its metadata there, and the reference its features.
    table = frame.assign(age=age)
    inside, plain = MDNRegressor("age", **SMALL).fit(table, y), MDNRegressor(**SMALL).fit(frame, y)
    report = density_report(inside, table, y, metadata["age"], reference=plain)
    low, high = np.quantile(age, [1 / 3, 2 / 3])
    assert list(report["strata"]) == [f"up to {low:g}", f"{low:g} to {high:g}", f"above {high:g}"]
    assert [s["rows"] for s in report["strata"].values()] == [30, 30, 30]
    gap = inside.crps(table, y) - plain.crps(frame, y)
    assert report["cost"]["crps"] == pytest.approx(gap.mean())
    with pytest.raises(ValueError, match="90 rows, got 3"):
        density_report(inside, table, y, age, strata=[1, 2, 3])
    with pytest.raises(ValueError, match="90 rows but metadata has 5"):
        density_report(inside, table, y, age[:5])


def test_what_a_report_cannot_be_made_of_is_refused_with_a_way_out() -> None:
    X, y, age = confounded(60)
    model = MDNRegressor(n_components=1, **SMALL).fit(X, y)
    absent = np.where(age < 1, age, np.nan)
    with pytest.raises(ValueError, match=r"missing values.*leave such rows out of X, y and metadata") as raised:
        density_report(model, X, y, absent)
    assert "missing=" not in str(raised.value)
    group = pd.Series(["a", "b"] * 30)
    for strata in (group.where(age[:, 0] < 1), absent[:, 0]):
        with pytest.raises(ValueError, match=f"strata has {int((age >= 1).sum())} missing"):
            density_report(model, X, y, age, strata=strata)
    with pytest.raises(TypeError, match="needs an MDNRegressor"):
        density_report(LinearRegression().fit(X, y), X, y, age)
    with pytest.raises(NotFittedError):
        density_report(MDNRegressor(), X, y, age)
