"""Residualize on plain vectors: exactness, protection, streaming, units. Everything is float64."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import statsmodels.api as sm
import torch

from residmix.errors import LeakageWarning
from residmix.nn import Residualize
from residmix.nn._fast import plain


def sample(n=300, d=5, k=2, seed=0):
    """Metadata that depend on a binary label, and features that depend on both."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (n, 1)).astype(float)
    m = rng.normal(size=(n, k)) + y
    x = rng.normal(size=(n, d)) + m @ rng.normal(size=(k, d)) + 2 * y + 5
    return tuple(torch.tensor(a) for a in (x, m, y))


def ols(columns, x):
    design = torch.cat([*columns, torch.ones(len(x), 1)], 1)
    return torch.linalg.lstsq(design, x).solution


def fitted(x, m, y=None, **options):
    p = 0 if y is None else y.shape[1]
    layer = Residualize(x.shape[1], m.shape[1], num_protected=p, **options)
    layer.accumulate(x, m, y)
    return layer.eval()


def correlation(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return (a.T @ b) / torch.outer(a.norm(dim=0), b.norm(dim=0)).clamp_min(1e-300)


@pytest.mark.parametrize("rows", [6, 20, 200])
def test_what_is_linear_in_metadata_vanishes_from_any_batch_size(rows):
    _, m, y = sample(rows)
    x = m @ torch.randn(2, 5).double() + y @ torch.randn(1, 5).double() + 3
    layer = Residualize(5, 2, num_protected=1, estimator="batch")
    layer._warned = True
    expected = ols([m, y], x)[2:3].mul(y) + x.mean(0) - ols([m, y], x)[2:3] * y.mean()
    torch.testing.assert_close(layer(x, m, y), expected, atol=1e-9, rtol=0)


def test_the_published_batch_formula_leaves_most_of_it_at_batch_20():
    """Lu et al. (CVPR 2021): (N/M) (X'X)^-1 of all N rows times X'F of the M rows of a batch is no projection."""
    _, m, y = sample(2000, k=1)
    x = m @ torch.tensor([[1.0, -1.0]]).double()
    design = torch.cat([y, m, torch.ones(2000, 1)], 1)
    kernel = torch.linalg.inv(design.T @ design)

    def published(rows):
        coef = 2000 / rows * kernel @ design[:rows].T @ x[:rows]
        rest = x[:rows] - design[:rows, 1:] @ coef[1:]
        return (rest - rest.mean(0)).abs().mean()

    assert published(20) > 0.2
    assert published(2000) < 1e-9


def test_residuals_have_no_partial_covariance_with_metadata():
    x, m, y = sample()
    r = fitted(x, m, y)(x, m)
    left = m - torch.cat([y, torch.ones(300, 1)], 1) @ ols([y], m)
    assert correlation(r, left).abs().max() < 1e-10
    assert correlation(x, left).abs().max() > 0.3
    assert correlation(fitted(x, m)(x, m), m).abs().max() < 1e-10


def test_what_remains_of_metadata_goes_through_the_label():
    x, m, y = sample(k=1)
    r = fitted(x, m, y)(x, m).numpy()

    def r2(target, columns):
        return sm.OLS(target, sm.add_constant(columns)).fit().rsquared

    label, age = y.numpy()[:, 0], m.numpy()[:, 0]
    assert r2(age, r) == pytest.approx(r2(age, label) * r2(label, r), abs=1e-10)
    assert r2(age, x.numpy()) > r2(age, r) + 0.2


def test_with_several_protected_columns_what_remains_is_at_most_what_they_say_times_what_of_them_can_be_read():
    rng = np.random.default_rng(2)
    y = rng.normal(size=(400, 3))
    m = y @ rng.normal(size=(3, 1)) + rng.normal(size=(400, 1))
    # Two features, three protected columns: not all of their directions can be read from the features.
    x = y @ rng.normal(size=(3, 2)) + m @ rng.normal(size=(1, 2)) + rng.normal(size=(400, 2))
    r = fitted(*(torch.tensor(a) for a in (x, m, y)))(torch.tensor(x), torch.tensor(m)).numpy()

    def fit(target, columns):
        return sm.OLS(target, sm.add_constant(columns)).fit()

    def most(columns, features):
        """Largest R2 of a linear combination of `columns` on `features`: the first canonical correlation."""
        left, right = (np.linalg.qr(a - a.mean(0))[0] for a in (columns, features))
        return np.linalg.svd(left.T @ right)[1][0] ** 2

    score = fit(m[:, 0], y)
    remains = fit(m[:, 0], r).rsquared
    # The identity of one column holds for the combination of them that predicts m, and no combination reads better
    # than the best one.
    assert remains == pytest.approx(score.rsquared * fit(score.fittedvalues, r).rsquared, abs=1e-10)
    assert 0.01 < remains < score.rsquared * most(y, r) - 0.01
    assert fit(m[:, 0], x).rsquared > score.rsquared * most(y, x)


def test_protected_effect_and_feature_means_stay_as_they_were():
    x, m, y = sample()
    r = fitted(x, m, y)(x, m)
    joint = ols([y, m], x)
    torch.testing.assert_close(ols([y, m], r)[0], joint[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(ols([y, m], r)[1:3], torch.zeros(2, 5).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(r.mean(0), x.mean(0), atol=1e-10, rtol=0)
    assert (ols([y], fitted(x, m)(x, m))[0] - joint[0]).abs().max() > 0.1


def test_coefficients_are_those_of_statsmodels():
    x, m, y = sample()
    layer = fitted(x, m, y)
    for j in range(5):
        reference = sm.OLS(x[:, j].numpy(), sm.add_constant(torch.cat([y, m], 1).numpy())).fit()
        np.testing.assert_allclose(layer.coefficients()[:, j], reference.params[2:], atol=1e-11)


def test_applying_twice_changes_nothing_and_the_change_has_rank_k():
    x, m, y = sample()
    r = fitted(x, m, y)(x, m)
    torch.testing.assert_close(fitted(r, m, y)(r, m), r, atol=1e-10, rtol=0)
    assert torch.linalg.matrix_rank(x - r) == 2


def test_without_protection_no_closer_residual_is_uncorrelated_in_any_norm():
    x, m, _ = sample()
    change = x - fitted(x, m)(x, m)
    centred = m - m.mean(0)
    root = torch.randn(5, 5).double()
    # Every other uncorrelated residual differs by D with centred' D = 0; the gradient of the distance along D is
    # tr(D' change W), zero for all such D exactly when change lies in the span of the centred metadata.
    direction = torch.randn(300, 5).double()
    direction = direction - centred @ torch.linalg.lstsq(centred, direction).solution
    assert abs(torch.trace(direction.T @ change @ root @ root.T)) < 1e-8
    assert abs(torch.trace(torch.randn(300, 5).double().T @ change @ root @ root.T)) > 1


@pytest.mark.parametrize("center", ["metadata", "features", "none"])
def test_centring_moves_the_mean_and_nothing_else(center):
    x, m, y = sample()
    layer = fitted(x, m, y, center=center)
    r = layer(x, m)
    mean = {"metadata": x.mean(0), "features": 0 * x.mean(0), "none": x.mean(0) - m.mean(0) @ layer.coefficients()}
    torch.testing.assert_close(r.mean(0), mean[center], atol=1e-10, rtol=0)
    centred = fitted(x, m, y)(x, m)
    torch.testing.assert_close(r - r.mean(0), centred - centred.mean(0), atol=1e-10, rtol=0)


@pytest.mark.parametrize("horizon", [None, 50])
def test_any_partition_into_batches_gives_the_same_moments(horizon):
    x, m, y = sample()
    layers = []
    for size in (1, 7, 64, 300):
        layer = Residualize(5, 2, num_protected=1, horizon=horizon)
        for part in torch.arange(300).split(size):
            layer(x[part], m[part], y[part])
        layers.append(layer)
    for layer in layers[1:]:
        for name, value in layers[0].named_buffers():
            torch.testing.assert_close(getattr(layer, name), value, atol=1e-12, rtol=1e-9, msg=name)


def test_forgetting_is_least_squares_with_exponential_weights():
    x, m, y = sample()
    layer = Residualize(5, 2, num_protected=1, horizon=50)
    for part in torch.arange(300).split(40):
        layer(x[part], m[part], y[part])
    weight = (1 - 1 / 50) ** torch.arange(299, -1, -1).double()
    design = sm.add_constant(torch.cat([y, m], 1).numpy())
    reference = np.stack(
        [sm.WLS(x[:, j].numpy(), design, weights=weight.numpy()).fit().params[2:] for j in range(5)], 1
    )
    np.testing.assert_allclose(layer.coefficients(), reference, atol=1e-10)
    assert layer.diagnostics()["effective_rows"] == pytest.approx(float(weight.sum() ** 2 / (weight**2).sum()))


def test_merging_two_sites_equals_seeing_both():
    x, m, y = sample()
    whole = fitted(x, m, y)
    one, two = fitted(x[:90], m[:90], y[:90]), fitted(x[90:], m[90:], y[90:])
    assert (one.coefficients() - whole.coefficients()).abs().max() > 1e-3
    torch.testing.assert_close(one.merge(two).coefficients(), whole.coefficients(), atol=1e-12, rtol=1e-11)
    with pytest.raises(ValueError, match="cannot merge"):
        one.merge(Residualize(4, 2, num_protected=1))


@pytest.mark.parametrize("fast", [True, False])
def test_moments_of_parts_are_those_of_the_whole_however_far_apart_the_parts_are(fast):
    x, m, y = sample()
    x = x + 100 * (torch.arange(300) >= 120).double()[:, None]
    layer = Residualize(5, 2, num_protected=1, horizon=None)
    with nullcontext() if fast else plain():
        for part in torch.arange(300).split(60):
            layer(x[part], m[part], y[part])
    whole = fitted(x, m, y)
    torch.testing.assert_close(layer.spread, (x - x.mean(0)).square().sum(0), rtol=1e-12, atol=0)
    for name in ("weight", "square", "mean", "scatter", "spread"):
        torch.testing.assert_close(getattr(layer, name), getattr(whole, name), rtol=1e-11, atol=1e-9)


def test_sample_weights_count_rows_and_zero_leaves_them_out():
    x, m, y = sample()
    weight = torch.randint(0, 3, (300,))
    layer = Residualize(5, 2, num_protected=1, horizon=None)
    layer(x, m, y, sample_weight=weight)
    index = torch.arange(300).repeat_interleave(weight)
    repeated = fitted(x[index], m[index], y[index])
    torch.testing.assert_close(layer.coefficients(), repeated.coefficients(), atol=1e-12, rtol=1e-11)


def test_units_and_offsets_of_metadata_do_not_matter():
    x, m, y = sample(2000)
    expected = fitted(x, m, y)(x, m)
    for scale, offset in ((1e-6, 0.0), (1e6, 0.0), (1.0, 1e4), (1e-2, 1e4), (1e6, 1e9)):
        r = fitted(x, m * scale + offset, y)(x, m * scale + offset)
        torch.testing.assert_close(r, expected, rtol=0, atol=1e-6 * float(expected.std()))


def test_all_levels_of_a_site_a_constant_and_a_copy_remove_what_the_site_explains():
    rng = np.random.default_rng(1)
    site = torch.tensor(np.where(np.arange(2000) < 10, 3, rng.integers(0, 3, 2000)))  # level 3: 0.5 % of rows
    one_hot = torch.nn.functional.one_hot(site).double()
    x = torch.randn(2000, 4).double() + one_hot @ torch.randn(4, 4).double() * 3
    redundant = torch.cat([one_hot, torch.full((2000, 1), 7.3).double(), one_hot[:, :1]], 1)
    layer = fitted(x, redundant)
    r = layer(x, redundant)
    means = torch.stack([r[site == level].mean(0) for level in range(4)])
    torch.testing.assert_close(means, means[:1].expand(4, 4), atol=1e-10, rtol=0)
    assert layer.diagnostics()["rank"] == 3
    torch.testing.assert_close(r, fitted(x, one_hot[:, 1:])(x, one_hot[:, 1:]), atol=1e-9, rtol=0)


def test_an_absolute_tolerance_would_miss_a_rare_site():
    rare = (torch.arange(2000) < 10).double().unsqueeze(1)
    x = torch.randn(2000, 4).double() + 3 * rare
    assert rare.var() < 0.01
    assert correlation(fitted(x, rare, rtol=0.01)(x, rare), rare).abs().max() < 1e-10
    assert correlation(x, rare).abs().max() > 0.15


def test_what_metadata_share_with_the_label_stays():
    x, _, y = sample()
    layer = fitted(x, 2 * y + 1, y)
    torch.testing.assert_close(layer(x, 2 * y + 1), x, atol=1e-12, rtol=0)
    assert layer.diagnostics()["rank"] == 0


def test_ridge_shrinks_as_the_formula_says():
    x, m, _ = sample(k=1)
    c, f = m - m.mean(0), x - x.mean(0)
    expected = c.T @ f / (c.T @ c * 1.5)
    torch.testing.assert_close(fitted(x, m, ridge=0.5).coefficients(), expected, atol=1e-12, rtol=0)


def test_diagnostics_tell_what_was_removed():
    x, m, _ = sample()
    layer = fitted(x, m)
    removed = (x - layer(x, m)).var(0) / x.var(0)
    report = layer.diagnostics()
    torch.testing.assert_close(report["removed"], removed, atol=1e-10, rtol=0)
    assert report["effective_rows"] == 300 and report["ready"] and not report["frozen"]


def test_learned_coefficients_reach_least_squares_through_the_penalty():
    x, m, y = sample()
    layer = Residualize(5, 2, num_protected=1, estimator="learned", horizon=None)
    layer(x, m, y)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=60, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        layer(x, m, y)
        layer.penalty.backward()
        return layer.penalty

    optimiser.step(closure)
    torch.testing.assert_close(layer.coefficients(), fitted(x, m, y).coefficients(), atol=1e-5, rtol=0)
    layer.reset()
    layer.accumulate(x, m, y)
    torch.testing.assert_close(layer.coefficients(), fitted(x, m, y).coefficients(), atol=1e-6, rtol=0)


def test_a_copy_is_independent():
    x, m, y = sample()
    layer = fitted(x, m, y)
    other = copy.deepcopy(layer)
    other.accumulate(x + m[:, :1] ** 3, m, y)
    assert (other.coefficients() - layer.coefficients()).abs().max() > 1e-3
    torch.testing.assert_close(layer.coefficients(), fitted(x, m, y).coefficients())


def test_batch_estimators_warn_of_leakage_once():
    x, m, y = sample(20)
    layer = Residualize(5, 2, num_protected=1, estimator="batch")
    with pytest.warns(LeakageWarning, match="4 coefficients to the 20 rows"):
        layer(x, m, y)
    layer(x, m, y)


def test_evaluation_with_too_few_rows_is_told_since_nothing_is_removed():
    x, m = torch.randn(30, 3), torch.randn(30, 1)
    layer = Residualize(3, 1)
    layer(x[:8], m[:8])
    layer.eval()
    with pytest.warns(LeakageWarning, match=r"only 7.9 effective rows yet, of 20"):
        assert torch.equal(layer(x, m), x)
    layer.accumulate(x, m)  # enough by now, and nothing is said
    assert not torch.equal(layer(x, m), x)
    learned = Residualize(3, 1, estimator="learned")
    learned(x[:8], m[:8])
    learned.eval()(x, m)  # its coefficients need no warm-up
