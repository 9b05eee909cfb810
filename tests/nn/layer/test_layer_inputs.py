"""Residualize: what may be passed to it, and what is refused."""

import numpy as np
import pytest
import torch

from residmix.nn import Residualize


def primed(**options):
    layer = Residualize(4, 1, num_protected=1, **options)
    y = torch.randint(0, 2, (200, 1)).double()
    m = torch.randn(200, 1).double() + y
    layer(torch.randn(200, 4).double() + m, m, y)
    return layer


def test_missing_metadata_raise_or_are_not_corrected():
    layer = primed()
    x, m = torch.randn(3, 4).double(), torch.tensor([[1.0], [float("nan")], [2.0]]).double()
    with pytest.raises(ValueError, match=r"NaN in 1 row"):
        layer(x, m, torch.ones(3))
    lenient = primed(missing="mean")
    assert torch.equal(lenient.eval()(x, m)[1], x[1])
    weight = lenient.weight.clone()
    lenient.train()(x, m, torch.ones(3))
    assert lenient.weight == pytest.approx(float(weight * (1 - 1 / 4096) ** 2 + 1 + (1 - 1 / 4096)))
    assert not lenient.scatter.isnan().any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 4),), "metadata must be passed"),
        ((torch.ones(3, 4), torch.ones(3, 1)), "protected must be passed"),
        ((torch.ones(3, 4), torch.ones(3, 2), torch.ones(3)), r"metadata must have shape \(3, 1\)"),
        ((torch.ones(3, 4), torch.ones(2, 1), torch.ones(3)), r"got \(2, 1\)"),
        ((torch.ones(3, 5), torch.ones(3, 1), torch.ones(3)), "5 features"),
        ((torch.ones(4), torch.ones(4, 1), torch.ones(4)), "at least two axes, samples and features"),
        ((torch.ones(3, 4, dtype=torch.long), torch.ones(3, 1), torch.ones(3)), "floating-point"),
        ((torch.ones(3, 4), np.ones((3, 1)), torch.ones(3)), "metadata must be a tensor.*got ndarray"),
        ((torch.ones(3, 4), torch.ones(3, 1), torch.full((3,), float("nan"))), r"protected .* NaN in 3 row"),
        ((torch.ones(3, 4), torch.full((3, 1), float("inf")), torch.ones(3)), r"metadata are infinite in 3 row"),
    ],
)
@pytest.mark.parametrize("missing", ["error", "mean"])
def test_arguments_that_cannot_be_right_are_refused(arguments, message, missing):
    layer = Residualize(4, 1, num_protected=1, missing=missing)
    with pytest.raises((ValueError, TypeError), match=message):
        layer(*arguments)
    assert layer.weight == 0


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_none_are_refused(weight):
    # NaN once made the layer stop learning without a word.
    weights = torch.tensor([1.0, weight, 1.0])
    with pytest.raises(ValueError, match="finite and not negative"):
        primed()(torch.ones(3, 4), torch.ones(3, 1), torch.ones(3), sample_weight=weights)


@pytest.mark.parametrize("options", [{}, {"missing": "mean"}, {"space": "feature"}])
def test_features_that_do_not_count_may_be_anything(options):
    layers = [Residualize(4, 1, maps="token", **options) for _ in range(2)]
    x, m = torch.randn(50, 5, 4), torch.randn(50, 1)
    weight, mask = torch.ones(50), torch.ones(50, 5, dtype=torch.bool)
    weight[0], mask[1], mask[2, 3:] = 0, False, False
    absent = x.clone()
    absent[0] = absent[1] = absent[2, 3:] = float("nan")
    for layer, values in zip(layers, (x, absent), strict=True):
        layer(values, m, sample_weight=weight, mask=mask)
    for one, other in zip(layers[0].buffers(), layers[1].buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_mask_of_numbers_that_are_added_to_scores_is_refused():
    x, m, added = torch.randn(50, 5, 4), torch.randn(50, 1), torch.zeros(50, 5)
    added[:, 3:] = float("-inf")
    with pytest.raises(ValueError, match="mask must be boolean"):
        Residualize(4, 1, maps="token")(x, m, mask=added)
    layers = [Residualize(4, 1, maps="token") for _ in range(2)]
    for layer, mask in zip(layers, (added == 0, (added == 0).long()), strict=True):
        layer(x, m, mask=mask)
    assert torch.equal(layers[0].scatter, layers[1].scatter)


@pytest.mark.parametrize(("maps", "shape"), [("element", (4,)), ("channel", (4, 2, 3)), ("token", (5, 4))])
def test_no_rows_at_all_are_a_batch_as_well(maps, shape):
    layer = Residualize(4, 1, maps=maps)
    positions = {"element": (), "channel": shape[1:], "token": shape[:-1]}[maps]
    x = torch.randn(0, *shape, requires_grad=True)
    out = layer(x, torch.ones(0, 1), mask=torch.ones(0, *positions, dtype=torch.bool), sample_weight=torch.ones(0))
    out.sum().backward()
    assert out.shape == x.shape and not layer.scatter.isnan().any()


def test_a_model_built_without_memory_can_be_loaded_into():
    trained = primed()
    with torch.device("meta"):
        layer = Residualize(4, 1, num_protected=1)
    layer.to_empty(device="cpu").load_state_dict(trained.state_dict())
    assert layer.scatter.dtype == torch.float64 and torch.equal(layer.coefficients(), trained.coefficients())


def test_widths_may_be_integers_of_numpy():
    layer = Residualize(np.int64(4), np.int64(1), num_protected=np.int64(1))
    assert layer(torch.randn(50, 4), torch.randn(50, 1), torch.randn(50, 1)).shape == (50, 4)
    with pytest.raises(TypeError, match="must be whole numbers"):
        Residualize(4, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "piror"}, "did you mean 'prior'"),
        ({"grad": "through"}, "grad='through' needs estimator="),
        ({"space": "feature", "estimator": "batch"}, "space='feature' needs"),
        ({"horizon": 0.5}, "horizon"),
        ({"num_protected": -1}, "num_protected"),
    ],
)
def test_options_that_cannot_be_right_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Residualize(4, 1, **options)


@pytest.mark.parametrize("estimator", ["prior", "posterior", "batch"])
def test_missing_metadata_get_no_correction_whatever_was_fitted_on_the_batch(estimator):
    g = torch.Generator().manual_seed(0)
    m = 50 + 10 * torch.randn(400, 1, generator=g).double()
    x = m + torch.randn(400, 2, generator=g).double()
    m[:5] = torch.nan
    layer = Residualize(2, 1, estimator=estimator, missing="mean", shrink=0)
    # The mean changes from batch to batch, by far from none (0) to the first.
    for shift in (0.0, 0.0, 30.0):
        out = layer(x, m + shift)
        torch.testing.assert_close(out[:5], x[:5], rtol=0, atol=1e-12)
    assert float((out[5:] - x[5:]).abs().max()) > 1
