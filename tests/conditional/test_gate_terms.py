"""Weights with terms of their own: what they depend on needn't be what has effects."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax, logsumexp
from scipy.stats import multivariate_normal

import residmix as rm
from residmix.conditional.coordinates import Widths
from residmix.errors import CollinearityWarning

SITES = np.array(["a", "b", "c"])


def table(seed=0, n=400, own=0.0):
    """Two clusters; sites shift both (by `own` not alike), and the older a row, the likelier the second."""
    rng = np.random.default_rng(seed)
    site, age = rng.integers(3, size=n), rng.uniform(20, 80, n)
    age += 5 * site
    cluster = (rng.random(n) < 1 / (1 + np.exp(-(age - 55) / 8))).astype(int)
    X = np.array([[0.0, 0.0], [3.0, 1.0], [-2.0, 2.0]])[site] + np.array([[0.0, 0.0], [3.0, 3.0]])[cluster]
    X = X + own * (cluster * (site == 1))[:, None] + rng.normal(size=(n, 2))
    return pd.DataFrame(X, columns=["x", "y"]).assign(site=SITES[site], age=age), cluster


def model(**options):
    options = {"formula": "site", "gating": "age", "estimation": "joint", "random_state": 0, "tol": 1e-9} | options
    return rm.ResidualMixture(2, **options)


def log_density(theta, data, effects):
    """The likelihood written out: means with effects of the sites, full covariances, a logit of age."""
    X, K = data[["x", "y"]].to_numpy(), 2
    a = (data["site"].to_numpy()[:, None] == SITES[1:]).astype(float)
    q = 2 if effects == "shared" else 2 * K
    gate, means, coef, roots = np.split(theta, [2, 6, 6 + 2 * q])
    coef = np.broadcast_to(coef.reshape(-1, 2, 2), (K, 2, 2))
    logits = np.column_stack([np.zeros(len(X)), gate[0] + gate[1] * (data["age"].to_numpy() - 55) / 10])
    joint = log_softmax(logits, axis=1)
    for k in range(K):
        root = np.array([[np.exp(roots[3 * k]), 0.0], [roots[3 * k + 1], np.exp(roots[3 * k + 2])]])
        away = X - means.reshape(K, 2)[k] - a @ coef[k]
        joint[:, k] += multivariate_normal(np.zeros(2), root @ root.T).logpdf(away)
    return float(logsumexp(joint, axis=1).sum())


def theta_of(fitted, effects):
    """The parameters of a fit, as `log_density` takes them."""
    order = np.argsort(fitted.means_[:, 0])
    gamma, constant = fitted.gate_coef_[order, -1], fitted.gate_intercept_[order]
    slope = gamma[1] - gamma[0]
    roots = np.linalg.cholesky(fitted.covariances_[order])
    coef = fitted.coef_[:2] if effects == "shared" else fitted.coef_[order, :2]
    means = fitted.intercept_ + fitted.means_[order]
    gate = [constant[1] - constant[0] + 55 * slope, 10 * slope]
    parts = [[np.log(root[0, 0]), root[1, 0], np.log(root[1, 1])] for root in roots]
    return np.concatenate([gate, means.ravel(), coef.ravel(), np.ravel(parts)])


@pytest.mark.parametrize("effects", ["shared", "by-component"])
def test_fits_end_where_scipy_ends(effects):
    data, _ = table(own=1.0)
    fitted = model(effects=effects).fit(data)
    found = fitted.score(data) * len(data)
    theta = theta_of(fitted, effects)
    assert_allclose(log_density(theta, data, effects), found, rtol=1e-10)
    away = theta + 0.1 * np.random.default_rng(1).normal(size=theta.size)
    ended = minimize(lambda t: -log_density(t, data, effects), away, method="BFGS", options={"gtol": 1e-5})
    assert abs(-ended.fun - found) < 1e-5
    assert np.abs(approx_fprime(theta, log_density, 1e-6, data, effects)).max() < 0.02
    # another number of parameters has another maximum
    assert model(effects=effects, gating="site").fit(data).score(data) < fitted.score(data) - 0.05
    count = 4 + 6 + 1 + (4 if effects == "shared" else 8) + 1
    assert fitted.bic(data) == pytest.approx(-2 * found + count * np.log(len(data)))


@pytest.mark.parametrize("options", [{}, {"effects": "by-component"}, {"noise": True}, {"covariance_by": "site"}])
def test_equal_terms_are_the_metadata_to_the_bit(options):
    data, _ = table(n=300)
    one = model(formula="site + age", gating="age + site", tol=1e-5, **options).fit(data)
    other = model(formula="site + age", gating="metadata", tol=1e-5, **options).fit(data)
    for name in ("coef_", "means_", "covariances_", "gate_coef_", "lower_bound_"):
        assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.design_columns_ == ["site[T.b]", "site[T.c]", "age"]


DIFFERENT = [
    ("site", "age", (1, 2)),
    ("site + age", "age", (1, 3)),
    ("site", "site + age", (3, 2)),
    ("1", "age", (1, 0)),
    ("site + age", "bs(age, df=4)", (4, 3)),
    ("age", "site:age", (3, 1)),
]
OPTIONS = [{"effects": "by-component"}, {"noise": True}, {"distribution": "t"}, {"missing_features": "em"},
           {"covariance_type": "diag"}, {"estimation": "two-stage"}, {"prior": "mclust"}]  # fmt: skip


@pytest.mark.parametrize(
    ("formula", "gating", "widths", "options"),
    [(*case, {}) for case in DIFFERENT] + [(*DIFFERENT[i % 4], own) for i, own in enumerate(OPTIONS)],
)
def test_masked_coefficients_are_zero_and_the_likelihood_never_falls(formula, gating, widths, options):
    data, _ = table(n=300)
    if "missing_features" in options:
        data.loc[::7, "x"] = np.nan
    fitted = model(formula=formula, gating=gating, tol=1e-5, **options).fit(data)
    assert fitted._to_residual.widths == Widths(*widths)
    assert np.diff(fitted.lower_bounds_).min(initial=0.0) > -1e-9
    own = fitted.residualizer_.design_columns_
    free = np.any(fitted.coef_, axis=-1).reshape(-1, len(fitted.design_columns_)).any(axis=0)
    assert [name for name, there in zip(fitted.design_columns_, free, strict=True) if there] == own
    gate = rm.Residualizer(gating).fit(data[["x", "y", "site", "age"]]).design_columns_
    free = fitted.gate_coef_.any(axis=0)
    assert {name for name, there in zip(fitted.design_columns_, free, strict=True) if there} == set(gate)
    # columns of effects are orthonormal, and those of the gate
    rows = fitted._rows(data, None)
    u = np.concatenate(list(rows.map(lambda block: block.design)))
    for part in (u[:, : widths[0]], u[:, u.shape[1] - widths[1] :]):
        assert_allclose(part.T @ part / len(u), np.eye(part.shape[1]), atol=1e-9)
    assert_allclose(fitted.predict_proba(data).sum(axis=1), 1.0)


def test_the_weights_of_a_row_are_those_of_its_terms():
    data, _ = table()
    fitted = model().fit(data)
    logits = fitted.gate_intercept_ + np.outer(data["age"], fitted.gate_coef_[:, -1])
    weights = np.exp(log_softmax(logits, axis=1))
    for i in (0, 5):
        at = fitted.at(data[i : i + 1])
        assert_allclose(at.weights_, weights[i])
        shift = {"a": np.zeros(2), "b": fitted.coef_[0], "c": fitted.coef_[1]}[data["site"][i]]
        assert_allclose(at.means_, fitted.intercept_ + shift + fitted.means_)
        assert_allclose(at.score_samples(data[["x", "y"]][i : i + 1]), fitted.score_samples(data[i : i + 1]))
    drawn, labels = fitted.sample(metadata=pd.concat([data] * 20, ignore_index=True))
    young = np.tile(data["age"] < 40, 20)
    assert_allclose(
        (labels[young] == np.argmax(weights[data["age"].argmin()])).mean(),
        weights[data["age"] < 40].max(axis=1).mean(),
        atol=0.02,
    )
    assert drawn.shape == (20 * len(data), 2)
    conditioned = fitted.condition({"x": 1.0}, metadata=data[:1])
    assert_allclose(conditioned.weights_.sum(), 1.0)


def test_standard_errors_are_those_of_the_written_out_likelihood():
    data, _ = table(n=400)
    fitted = model().fit(data)
    theta = theta_of(fitted, "shared")
    scores = np.stack([approx_fprime(theta, log_density, 1e-6, data[i : i + 1], "shared") for i in range(len(data))])
    covariance = np.linalg.inv(scores.T @ scores)
    errors = fitted.standard_errors(data)
    assert_allclose(errors.coef[:2].ravel(), np.sqrt(np.diag(covariance))[6:10], rtol=1e-3)
    assert_array_equal(errors.coef[2], 0.0)
    # rows of gate_coef_ add up to 0, so half a difference
    assert_allclose(errors.gate_coef[:, -1], np.sqrt(covariance[1, 1]) / 20, rtol=1e-3)
    assert_array_equal(errors.gate_coef[:, :2], 0.0)


def test_a_file_a_stream_and_an_array_give_the_same_bits(tmp_path):
    data, _ = table(n=3000)
    one = model(tol=1e-5).fit(data)
    data.to_parquet(tmp_path / "rows.parquet", row_group_size=700)
    for other in (rm.scan(tmp_path / "rows.parquet"), data):
        again = model(tol=1e-5).fit(other)
        assert_array_equal(again.gate_coef_, one.gate_coef_)
        assert_array_equal(again.predict_proba(other), one.predict_proba(data))
    apart = model(tol=1e-5).fit(data[["x", "y"]], metadata=data[["site", "age"]])
    assert_array_equal(apart.coef_, one.coef_)
    rm.save(one, tmp_path / "model.safetensors")
    loaded = rm.load(tmp_path / "model.safetensors")
    assert_array_equal(loaded.predict_proba(data), one.predict_proba(data))
    assert_array_equal(loaded.sample(metadata=data)[0], one.sample(metadata=data)[0])
    numbers = data[["site", "age"]].assign(site=np.searchsorted(SITES, data["site"])).to_numpy(dtype=float)
    array = model(formula="C(m0)", gating="m1", tol=1e-5).fit(data[["x", "y"]].to_numpy(), metadata=numbers)
    assert_allclose(array.score(data[["x", "y"]].to_numpy(), metadata=numbers), one.score(data), rtol=1e-9)


def test_two_stages_remove_the_effects_terms_and_nothing_else():
    data, _ = table()
    fitted = model(estimation="two-stage", preserve="age").fit(data)
    plain = rm.Residualizer("site", preserve="age").fit(data)
    assert_allclose(fitted.coef_[:2], plain.coef_, rtol=1e-12)
    residual = plain.transform(data)
    assert_allclose(fitted.transform(data), residual, atol=1e-10)
    assert fitted.gate_coef_[:, -1].any()


def test_a_gate_can_be_warm_started_and_begin_with_labels():
    data, cluster = table()
    fitted = model(warm_start=True).fit(data)
    bound = fitted.lower_bound_
    fitted.fit(data)
    assert fitted.n_iter_ <= 3 and fitted.lower_bound_ >= bound - 1e-12
    with pytest.raises(ValueError, match="a gate of 1"):
        fitted.set_params(gating="site + age").fit(data)
    for effects in ("shared", "by-component"):
        given = model(labels_init=cluster, effects=effects).fit(data)
        assert np.mean(given.predict(data) == cluster) > 0.95


def test_terms_of_gate_and_effects_are_chosen_apart():
    data, cluster = table(n=500)
    data["noise"] = np.random.default_rng(5).normal(size=len(data))
    full = model(formula="site + age + noise", gating="site + age + noise", labels_init=cluster, tol=1e-5)
    chosen = rm.stepwise(full, data, effects=["shared"])
    assert (chosen.formula, chosen.gating) == ("site", "age")
    assert_allclose(min(chosen.selection_["bic"]), chosen.bic(data), rtol=1e-9)
    assert set(chosen.selection_["gating"]) > {"age", "site + age + noise"}
    # with the same terms for both, the best has more parameters
    same = rm.stepwise(full.set_params(gating="metadata"), data, effects=["shared"])
    assert chosen.bic(data) < same.bic(data) - 1
    again = rm.stepwise(full, data, effects=["shared"], gating=["formula"])
    assert (again.formula, again.gating) == ("site", "age")
    with pytest.raises(ValueError, match="leave the others out"):
        rm.stepwise(full, data, gating=["formula", "constant"])


def test_aliased_columns_of_the_gate_are_named():
    data, _ = table(n=300)
    with pytest.warns(CollinearityWarning, match=r"1 of 5 .* of gating are aliased: .*df=4\)\[4\]"):
        fitted = model(gating="age + bs(age, df=4)", tol=1e-5).fit(data)
    same = model(gating="bs(age, df=4)", tol=1e-5).fit(data)
    assert_allclose(fitted.score(data), same.score(data), rtol=1e-6)
    assert fitted._n_parameters() == same._n_parameters()


def test_a_gate_without_terms_is_constant():
    data, _ = table()
    one, other = model(gating="1").fit(data[["x", "y", "site"]]), model(gating="constant").fit(data[["x", "y", "site"]])
    assert one.gate_coef_ is None
    assert_array_equal(one.coef_, other.coef_)


def test_what_is_no_formula_is_refused_with_a_hint():
    data, _ = table(n=60)
    with pytest.raises(ValueError, match=r"unknown column 'aeg'.*did you mean 'age'") as caught:
        model(gating="aeg").fit(data)
    assert "taken as a formula" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="formula='1'"):
        model(formula=None).fit(data[["x", "y"]])
    with pytest.raises(ValueError, match="needs a penalty"):
        model(gating="s(age)").fit(data)
    fitted = model(tol=1e-3).fit(data)
    with pytest.raises(ValueError, match="age"):
        fitted.predict(data[["x", "y", "site"]])


def test_combinations_without_rows_are_refused_in_the_gate_too(tmp_path):
    data, _ = table()
    data["kind"] = np.where((data["site"] != "a") & (np.arange(len(data)) % 2 == 0), "q", "p")
    first = data.index[data["site"] == "a"][0]
    new = data.copy()
    new.loc[first, "kind"] = "q"
    with pytest.warns(CollinearityWarning, match="1 of 5 design columns of gating"):
        fitted = model(gating="site * kind").fit(data)
    fitted.predict(data)
    rm.save(fitted, tmp_path / "model.safetensors")
    for one in (fitted, rm.load(tmp_path / "model.safetensors")):
        with pytest.raises(
            ValueError, match=f"row {first} has a combination of levels in 'site:kind' that had no rows"
        ):
            one.predict(new)
    with pytest.warns(CollinearityWarning):
        counted = model(gating="site * kind").fit(new, sample_weight=(new.index != first).astype(float))
    with pytest.raises(ValueError, match="had no rows in fit"):
        counted.predict(new)
    with pytest.warns(CollinearityWarning):
        assert np.isfinite(model(gating="site * kind", on_unknown="mean").fit(data).predict_proba(new)).all()
