"""Feature maps, tokens, masks, and the feature-space mode."""

import numpy as np
import pytest
import torch

from residmix.nn import MetadataSequential, Residualize, audit


def maps(n=60, c=3, side=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(n, 2, generator=g, dtype=torch.float64)
    x = torch.randn(n, c, side, side, generator=g, dtype=torch.float64)
    return x + (m @ torch.randn(2, c, generator=g, dtype=torch.float64))[:, :, None, None], m


def fitted(x, m, **options):
    layer = Residualize(options.pop("features", x.shape[1]), m.shape[-1], **options)
    layer.accumulate(x, m)
    return layer.eval()


def test_channel_statistics_are_element_statistics_of_the_pooled_map():
    x, m = maps()
    layer = fitted(x, m, maps="channel")
    pooled = x.mean((2, 3))
    reference = fitted(pooled, m)
    torch.testing.assert_close(layer.coefficients(), reference.coefficients(), atol=1e-13, rtol=0)
    torch.testing.assert_close(layer(x, m).mean((2, 3)), reference(pooled, m), atol=1e-13, rtol=0)
    constant = pooled[:, :, None, None].expand(60, 3, 4, 4)
    torch.testing.assert_close(layer(constant, m)[:, :, 1, 2], reference(pooled, m), atol=1e-13, rtol=0)


def test_channel_correction_does_not_care_for_the_order_or_number_of_positions():
    x, m = maps()
    layer = fitted(x, m, maps="channel")
    order = torch.randperm(16)
    shuffled = x.flatten(2)[:, :, order]
    torch.testing.assert_close(
        fitted(shuffled, m, maps="channel")(shuffled, m), layer(x, m).flatten(2)[:, :, order], atol=1e-12, rtol=0
    )
    assert layer(x[:, :, :2], m).shape == (60, 3, 2, 4)
    assert layer(x.mean((2, 3)), m).shape == (60, 3)


def test_every_element_of_a_map_is_residualized():
    x, m = maps()
    r = fitted(x, m, features=(3, 4, 4))(x, m)
    assert r.shape == x.shape
    c = m - m.mean(0)
    assert (c.T @ r.flatten(1)).abs().max() < 1e-10 < (c.T @ x.flatten(1)).abs().max()


def test_tokens_are_channels_on_the_last_axis():
    x, m = maps()
    tokens = x.flatten(2).transpose(1, 2)
    channel, token = fitted(x, m, maps="channel"), fitted(tokens, m, features=3, maps="token")
    torch.testing.assert_close(token(tokens, m), channel(x, m).flatten(2).transpose(1, 2), atol=1e-13, rtol=0)
    per_token = m[:, None, :].expand(60, 16, 2)
    explicit = fitted(tokens, per_token, features=3, maps="token")
    torch.testing.assert_close(explicit.coefficients(), token.coefficients(), atol=1e-12, rtol=0)
    assert explicit.weight == pytest.approx(60)


def test_metadata_of_single_tokens_are_removed_token_by_token():
    time = torch.rand(50, 7, 1).double()
    x = torch.randn(50, 7, 3).double() + 4 * time
    r = fitted(x, time, features=3, maps="token")(x, time)
    flat, t = r.reshape(-1, 3), time.reshape(-1, 1) - time.mean()
    assert (t.T @ flat).abs().max() < 1e-10


def test_masked_positions_may_hold_what_is_not_a_number():
    x, m = maps()
    tokens, mask = x.flatten(2).transpose(1, 2).clone(), torch.ones(60, 16, dtype=torch.bool)
    mask[:, 12:] = False
    unknown = torch.where(mask[..., None], tokens, torch.nan)
    layer, other = (Residualize(3, 2, maps="token") for _ in range(2))
    layer.accumulate(tokens, m, mask=mask)
    other.accumulate(unknown, m, mask=mask)
    torch.testing.assert_close(other.coefficients(), layer.coefficients(), atol=1e-13, rtol=0)


def test_masked_positions_have_no_say():
    x, m = maps()
    tokens, mask = x.flatten(2).transpose(1, 2).clone(), torch.ones(60, 16, dtype=torch.bool)
    mask[::2, 10:] = False
    mask[0] = False
    layer = Residualize(3, 2, maps="token", horizon=None)
    layer.accumulate(tokens, m, mask=mask)
    changed = torch.where(mask[..., None], tokens, 1e3)
    other = Residualize(3, 2, maps="token", horizon=None)
    other.accumulate(changed, m, mask=mask)
    torch.testing.assert_close(layer.coefficients(), other.coefficients(), atol=1e-10, rtol=0)
    assert layer.weight == 59
    means = torch.stack([token[keep].mean(0) for token, keep in zip(tokens[1:], mask[1:], strict=True)])
    torch.testing.assert_close(layer.coefficients(), fitted(means, m[1:]).coefficients(), atol=1e-11, rtol=0)
    with pytest.raises(ValueError, match=r"mask must have shape \(60, 16\)"):
        layer(tokens, m, mask=mask[:, :3])


def classification(n=400, d=6):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (n, 1)).astype(float)
    z = rng.normal(size=(n, 2)) + 0.7 * y
    mixing = rng.normal(size=(d, d))
    x = rng.normal(size=(n, d)) @ mixing + z @ rng.normal(size=(2, d)) + y @ rng.normal(size=(1, d)) + 2
    return tuple(torch.tensor(a) for a in (x, z, y))


def left(target, columns):
    centred = columns - columns.mean(0)
    return target - target.mean(0) - centred @ torch.linalg.pinv(centred, rtol=1e-10) @ target


def covariance(a, b):
    return (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)


def test_feature_space_erasure_leaves_no_covariance_and_needs_no_metadata():
    x, z, _ = classification()
    layer = fitted(x, z, space="feature")
    r = layer(x)
    assert covariance(r, z).abs().max() < 1e-10 < covariance(x, z).abs().max()
    torch.testing.assert_close(r.mean(0), x.mean(0), atol=1e-10, rtol=0)
    assert torch.linalg.matrix_rank(x - r) == 2
    torch.testing.assert_close(layer(r), r, atol=1e-10, rtol=0)


def test_feature_space_erasure_is_the_closest_affine_map_in_any_norm():
    x, z, _ = classification()
    layer = fitted(x, z, space="feature")
    # An affine map A x + b erases z iff A Cov(x, z) = 0. At the optimum the change (I - A) Cov(x, x) is orthogonal,
    # in every norm, to all directions D with D Cov(x, z) = 0.
    change = x - layer(x)
    null = torch.eye(6).double() - covariance(x, z) @ torch.linalg.pinv(covariance(x, z))
    for _ in range(3):
        direction, root = torch.randn(6, 6).double() @ null, torch.randn(6, 6).double()
        step = (x - x.mean(0)) @ direction.T
        assert abs((change * (step @ root @ root.T)).sum()) < 1e-7
        assert abs((change * ((x - x.mean(0)) @ root @ root.T)).sum()) > 1


def test_in_feature_space_what_goes_is_the_covariance_given_the_protected_column():
    x, z, y = classification()
    layer = Residualize(6, 2, num_protected=1, space="feature")
    layer.accumulate(x, z, y)
    r = layer.eval()(x)
    rest = left(z, y)
    assert covariance(r, rest).abs().max() < 1e-10 and covariance(x, rest).abs().max() > 0.01
    torch.testing.assert_close(covariance(r, y), covariance(x, y), atol=1e-10, rtol=0)
    assert (covariance(fitted(x, z, space="feature")(x), y) - covariance(x, y)).abs().max() > 0.01

    def r2(target, columns):
        return 1 - float(left(target, columns).square().sum() / (target - target.mean(0)).square().sum())

    # A probe that is given the label reads nothing; one that isn't reads what the label says.
    for j in range(2):
        assert r2(z[:, [j]], r) == pytest.approx(r2(z[:, [j]], y) * r2(y, r), abs=1e-10)
        assert r2(z[:, [j]], x) > r2(z[:, [j]], r) + 0.01
    probes = audit(MetadataSequential(layer), [(x, z, y)]).layers[0]
    assert probes.after.linear < 1e-10 < 0.01 < probes.before.linear
    assert probes.after.total == pytest.approx(probes.mediated, abs=1e-10)


def test_feature_space_training_uses_earlier_batches_and_gradients_flow():
    x, z, y = classification()
    layer = Residualize(6, 2, num_protected=1, space="feature", horizon=None)
    layer(x[:300], z[:300], y[:300])
    before = layer.eval()(x[300:])
    leaf = x[300:].clone().requires_grad_()
    out = layer.train()(leaf, z[300:], y[300:])
    assert torch.equal(out, before)
    out.sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert not torch.equal(layer.eval()(x[300:]), before)


def test_feature_space_erasure_survives_collinear_features_and_metadata():
    x, z, _ = classification()
    x, z = torch.cat([x, x[:, :1] + x[:, 1:2]], 1), torch.cat([z, z.sum(1, keepdim=True)], 1)
    r = fitted(x, z, space="feature")(x)
    assert covariance(r, z).abs().max() < 1e-8


def test_feature_space_on_maps_erases_the_pooled_map():
    x, m = maps()
    pooled = x.mean((2, 3))
    layer = fitted(x, m[:, :1], maps="channel", space="feature")
    torch.testing.assert_close(
        layer(x).mean((2, 3)), fitted(pooled, m[:, :1], space="feature")(pooled), atol=1e-11, rtol=0
    )
    tokens = x.flatten(2).transpose(1, 2)
    r = fitted(tokens, m[:, :1], features=3, maps="token", space="feature")(tokens)
    assert covariance(r.mean(1), m[:, :1]).abs().max() < 1e-10
