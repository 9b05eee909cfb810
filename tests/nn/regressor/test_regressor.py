"""MDNRegressor: the scikit-learn contract, units, weights, missing and discrete targets, files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

import residmix
from residmix.errors import CollapsedScaleWarning, DeadComponentWarning, DiscreteTargetWarning
from residmix.nn import MDNRegressor
from residmix.nn.regressor import estimator as regressor

TINY = {"n_members": 2, "max_epochs": 8, "hidden": (8,), "random_state": 0}
QUIET = pytest.mark.filterwarnings(
    "ignore::residmix.errors.ResidmixWarning", "ignore::sklearn.exceptions.ConvergenceWarning"
)


@QUIET
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([MDNRegressor(**TINY)])
def test_scikit_learn_accepts_it(estimator, check) -> None:
    check(estimator)


def table(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    return X, X[:, 0] + 0.5 * rng.normal(size=n)


@QUIET
def test_a_thousandfold_target_shifts_the_score_by_exactly_log_1000() -> None:
    X, y = table()
    a, b = (MDNRegressor(**TINY).fit(X, s * y) for s in (1.0, 1000.0))
    assert a.score(X, y) - b.score(X, 1000 * y) == pytest.approx(np.log(1000), abs=1e-9)
    np.testing.assert_allclose(1000 * a.crps(X, y), b.crps(X, 1000 * y), rtol=1e-9)


@QUIET
def test_the_score_is_the_density_in_the_units_of_y_constants_included() -> None:
    X, y = table()
    model = MDNRegressor(n_components=1, **{**TINY, "n_members": 1}).fit(X, 1e3 * y + 5e4)
    p = model.predict_distribution(X)
    normal = stats.norm(p.means[:, 0, 0].numpy(), p.scale[:, 0, 0].numpy())
    np.testing.assert_allclose(model.score_samples(X, 1e3 * y + 5e4), normal.logpdf(1e3 * y + 5e4))
    assert model.score(X, 1e3 * y + 5e4) == pytest.approx(normal.logpdf(1e3 * y + 5e4).mean())


@QUIET
def test_the_score_of_weights_is_that_of_repeated_rows() -> None:
    X, y = table()
    model, times = MDNRegressor(**TINY).fit(X, y), np.arange(len(X)) % 4
    repeated = model.score(np.repeat(X, times, axis=0), np.repeat(y, times))
    assert model.score(X, y, sample_weight=times) == pytest.approx(repeated, rel=1e-9)
    assert abs(model.score(X, y) - repeated) > 1e-6


@QUIET
@pytest.mark.slow
def test_predictions_are_closed_forms_and_the_same_twice() -> None:
    import scoringrules  # which compiles for seconds

    # lightning-uq-box and pytorch-tabular predict from random draws.
    X, y = table()
    model = MDNRegressor(**TINY).fit(X, y)
    for output in ("mean", "median", "mode", "quantiles"):
        np.testing.assert_array_equal(model.predict(X, output=output), model.predict(X, output=output))
    p = model.predict_distribution(X)
    np.testing.assert_allclose(model.predict(X), p.mean[:, 0])
    weights, means, scales = (a[:, 0] for a in p.marginal_arrays())
    np.testing.assert_allclose(model.crps(X, y), scoringrules.crps_mixnorm(y, means, scales, weights), rtol=1e-9)
    interval = model.predict_interval(X, level=0.8)
    np.testing.assert_allclose(p.cdf(torch.from_numpy(interval[:, 1:])).squeeze(), 0.9, atol=1e-9)
    np.testing.assert_allclose(model.pit(X, y), p.cdf(torch.from_numpy(y[:, None])).squeeze())
    draws = model.sample(X, 4000, random_state=0)
    # Predictive sd is about 0.6, so the standard error of a mean of 4000 is 0.01.
    np.testing.assert_allclose(draws.mean(0), model.predict(X), atol=0.06)
    np.testing.assert_array_equal(draws[:3], model.sample(X, 4000, random_state=0)[:3])


@QUIET
def test_predictions_reach_beyond_the_training_range() -> None:
    # scikit-mdn's are clipped to [min y, max y] of training.
    X, y = table()
    model = MDNRegressor(**TINY).fit(X, y)
    assert model.predict(np.array([[8.0, 0, 0]]))[0] > y.max()


@QUIET
def test_the_fit_reproduces_and_leaves_torchs_generator_and_threads_alone() -> None:
    X, y = table()
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    a, b = MDNRegressor(**TINY).fit(X, y), MDNRegressor(**TINY).fit(X, y)
    np.testing.assert_array_equal(a.predict(X), b.predict(X))
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    other = MDNRegressor(**{**TINY, "random_state": 1}).fit(X, y)
    assert np.abs(a.predict(X) - other.predict(X)).max() > 1e-6


@QUIET
def test_weights_are_repeated_rows_and_the_order_of_rows_does_not_matter() -> None:
    X, y = table(60)
    weight = np.random.default_rng(1).integers(0, 4, 60)
    model = MDNRegressor(**TINY).fit(X, y, sample_weight=weight)
    repeat = np.random.default_rng(2).permutation(np.repeat(np.arange(60), weight))
    np.testing.assert_allclose(model.predict(X), MDNRegressor(**TINY).fit(X[repeat], y[repeat]).predict(X), rtol=1e-6)
    assert np.abs(model.predict(X) - MDNRegressor(**TINY).fit(X, y).predict(X)).max() > 1e-4


@QUIET
@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full", "low-rank"])
def test_missing_targets_are_used_for_what_they_hold(covariance) -> None:
    rng = np.random.default_rng(0)
    X, y = table()
    Y = np.column_stack([y, -y + 0.1 * rng.normal(size=len(y)), rng.normal(size=len(y))])
    Y[rng.random(Y.shape) < 0.3] = np.nan
    Y[0] = np.nan
    model = MDNRegressor(covariance=covariance, **TINY).fit(X, Y)
    log = model.score_samples(X, Y)
    assert np.isfinite(log).all() and log[0] == pytest.approx(0.0, abs=1e-12)
    one = Y.copy()
    one[:, 1:] = np.nan
    marginal = model.predict_distribution(X).marginal([0]).log_prob(torch.from_numpy(one[:, :1]))
    np.testing.assert_allclose(model.score_samples(X, one), marginal, atol=1e-9)


def test_missing_values_of_a_single_target_are_refused() -> None:
    X, y = table()
    y[3] = np.nan
    with pytest.raises(ValueError, match="row 3, target 0"):
        MDNRegressor(**TINY).fit(X, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_discrete_target_is_noticed_and_its_score_stays_below_that_of_certainty() -> None:
    X, y = table(200)
    grid = np.round(2 * y)
    with pytest.warns(DiscreteTargetWarning, match="grid of step 1"):
        model = MDNRegressor(**TINY).fit(X, grid)
    assert model.likelihood_ == "interval" and model.cell_width_ == pytest.approx([1.0])
    # A cell of width 1 has probability at most 1, so the log is at most 0, however narrow the components get.
    assert model.score_samples(X, grid).max() <= 0
    with pytest.warns(DiscreteTargetWarning, match="half a step"):
        model = MDNRegressor(likelihood="density", **TINY).fit(X, grid)
    assert model.predict_distribution(X).component_scales.min() >= 0.5 - 1e-6


def test_a_continuous_target_has_no_cells() -> None:
    X, y = table()
    with pytest.raises(ValueError, match="repeated values on a grid"):
        MDNRegressor(likelihood="interval", **TINY).fit(X, y)


@pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore::residmix.errors.DeadComponentWarning"
)
def test_collapsed_scales_are_noticed() -> None:
    X, _ = table()
    with pytest.warns(CollapsedScaleWarning, match="lower bound"):
        MDNRegressor(min_scale=0.5, **{**TINY, "max_epochs": 80}).fit(X, X[:, 0] + X[:, 1])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_dead_components_are_noticed() -> None:
    X, y = table(60)
    y = np.where(np.arange(60) < 1, 50.0, y)  # one outlier takes a component for itself, of weight 1/60
    rare = np.concatenate([y, table(300, 1)[1]])
    with pytest.warns(DeadComponentWarning, match="Use fewer"):
        model = MDNRegressor(n_components=20, **TINY).fit(np.concatenate([X, table(300, 1)[0]]), rare)
    assert model.diagnostics_["dead"]


@QUIET
def test_auto_takes_the_number_of_components_with_the_lowest_held_out_loss() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = X[:, 0] + rng.choice([-3.0, 3.0], 300) + 0.2 * rng.normal(size=300)
    model = MDNRegressor(n_components="auto", **{**TINY, "max_epochs": 30}).fit(X, y)
    assert model.n_components_ == min(model.components_loss_, key=model.components_loss_.get) > 1


@QUIET
def test_saved_and_pickled_models_predict_the_same_bits(tmp_path) -> None:
    X, y = table()
    model = MDNRegressor(**TINY).fit(X, y)
    residmix.save(model, tmp_path / "model.safetensors")
    for copy in (residmix.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(copy.predict(X), model.predict(X))
        assert copy.score(X, y) == model.score(X, y) and copy.get_params() == model.get_params()


@QUIET
def test_the_variance_of_an_ensemble_is_within_plus_between_members() -> None:
    X, y = table()
    model = MDNRegressor(**TINY).fit(X, y)
    members = model.member_distributions(X)
    total = members.variance.mean(0) + members.mean.var(0, correction=0)
    torch.testing.assert_close(model.predict_distribution(X).variance, total)


@QUIET
def test_on_diabetes_it_beats_the_linear_gaussian_model_and_covers() -> None:
    X, y = load_diabetes(return_X_y=True)
    order = np.random.RandomState(77).permutation(len(y))
    test, train = order[:110], order[110:]
    model = MDNRegressor(n_members=3, random_state=0).fit(X[train], y[train])
    line = LinearRegression().fit(X[train], y[train])
    sd = np.sqrt(np.sum((y[train] - line.predict(X[train])) ** 2) / (len(train) - 11))
    linear = stats.norm(line.predict(X[test]), sd).logpdf(y[test]).mean()
    assert model.score(X[test], y[test]) > max(linear - 0.02, -5.5)
    inside = (y[test, None] - model.predict_interval(X[test])).prod(1) <= 0
    # 110 rows: the standard error of a coverage of 0.9 is 0.03.
    assert 0.82 <= inside.mean() <= 0.98


@QUIET
def test_diagnostics_tell_the_stages_of_a_fit_with_metadata_apart() -> None:
    X, y = table()
    age = np.random.default_rng(3).normal(size=(len(X), 1))
    model = MDNRegressor(**TINY).fit(X, 100 * y, metadata=age)
    for stage in (model.diagnostics_, model.diagnostics_["head"]):
        losses = stage["validation_loss"]
        assert losses.shape == (stage["n_epochs"], 2)
        for m, (epoch, loss) in enumerate(zip(stage["best_epoch"], stage["best_loss"], strict=True)):
            assert epoch == 0 or loss == losses[epoch - 1, m] == losses[:, m].min()
    assert model.diagnostics_["best_loss"] != model.diagnostics_["head"]["best_loss"]
    # In the units of y, and what the candidates of n_components are compared by: the loss of the second stage.
    head = np.mean(model.diagnostics_["head"]["best_loss"])
    assert head - np.log(np.std(100 * y)) == pytest.approx(model.components_loss_[3])
    assert "head" not in MDNRegressor(**TINY).fit(X, y).diagnostics_


def test_patience_is_longer_where_small_tables_have_few_batches(monkeypatch) -> None:
    seen = []

    def look(plan, candidates, sample, schedule, **options):
        seen.append((schedule.batch_size, schedule.patience))
        raise InterruptedError

    monkeypatch.setattr(regressor, "fit_best", look)
    for n, options in ((120, {}), (1000, {}), (120, {"batch_size": 16})):
        with pytest.raises(InterruptedError):
            MDNRegressor(**options).fit(*table(n))
    # 120 rows: 102 to train on, 6.4 batches of 16 an epoch instead of 24.
    assert seen == [(16, round(60 * (24 * 16 / 102) ** 0.5)), (35, 60), (16, 60)]


def representation(model, X, m):
    """What enters the head of each member, and the standardised metadata."""
    with torch.no_grad():
        z = torch.from_numpy(model._x_scaling.forward(X))
        given = torch.from_numpy((m[:, None] - model._m_scaling.mean[:1]) / model._m_scaling.scale[:1])
        return model.network_.representation(z, given).numpy()


def confounded(n=300):
    rng = np.random.default_rng(0)
    y = rng.normal(size=n)
    m = y + rng.normal(size=n)
    return np.column_stack([y, m, y * m]) + rng.normal(size=(n, 3)), y, m, rng.integers(1, 6, n).astype(float)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("protect", [False, True])
def test_representations_are_free_of_metadata_given_what_is_protected_with_the_weights_of_the_fit(protect, weighted):
    X, y, m, weight = confounded()
    weight = weight if weighted else np.ones(len(y))
    model = MDNRegressor(n_members=2, max_epochs=8, hidden=(6,), protect_target=protect, random_state=0)
    model.fit(X, y, metadata=m, sample_weight=weight)

    def covariance(target, own):
        return [np.abs((own * target) @ (h - np.average(h, axis=0, weights=own))).max() / own.sum() for h in hidden]

    hidden = representation(model, X, m)
    centred = m - np.average(m, weights=weight)
    label = y - np.average(y, weights=weight)
    given_label = centred - label * (np.average(label * m, weights=weight) / np.average(label**2, weights=weight))
    free, other = (given_label, centred) if protect else (centred, given_label)
    # In float32, as the fit.
    assert max(covariance(free, weight)) < 1e-4 and min(covariance(other, weight)) > 1e-2
    if weighted:
        assert min(covariance(free, np.ones(len(y)))) > 1e-3
