"""Everything fast gives what the plain way gives: layers in training, and the fit of an ensemble."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from residmix.nn import MDNRegressor, MetadataSequential, Residualize, _fast
from residmix.nn._fast import gradient, light
from residmix.nn._fast.trainer import SideBySide
from residmix.nn.regressor.fitting import Plan, Removal, plan_network
from residmix.nn.regressor.training import Running, Sample, Schedule, hold_out, train


def trained(options, shape, masked):
    torch.manual_seed(0)
    layer = Residualize(shape[0], 2, num_protected=1, warmup=0, **options)
    net = MetadataSequential(
        torch.nn.Conv2d(3, shape[0], 1) if len(shape) > 1 else torch.nn.Linear(3, 4), layer
    ).double()
    seen = []
    for _ in range(4):
        x = torch.randn(30, 3, *shape[1:], dtype=torch.float64, requires_grad=True)
        y = torch.randint(0, 2, (30, 1)).double()
        m = torch.randn(30, 2).double() + y + x.flatten(1)[:, :1].detach()
        given = {"mask": torch.rand(30, *shape[1:]) > 0.3, "sample_weight": torch.rand(30)} if masked else {}
        out = net(x, m, y, **given)
        (out + out.square()).sum().backward()
        seen += [out.detach(), x.grad, net[0].weight.grad.clone()]
    return seen + list(layer.buffers())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (4,)),
        ({"center": "features"}, (4,)),
        ({"maps": "channel"}, (4, 3, 3)),
        ({"maps": "channel", "shrink": 0, "center": "features"}, (4, 3, 3)),
        ({"estimator": "posterior"}, (4,)),
        ({"grad": "stop"}, (4,)),
    ],
)
@pytest.mark.filterwarnings("ignore::residmix.errors.LeakageWarning")
def test_a_layer_trains_the_same_on_plain_torch(options, shape, masked):
    fast = trained(options, shape, masked)
    with _fast.plain():
        plain = trained(options, shape, masked)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_the_switch_turns_everything_off(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("fast")

    X, y = np.random.default_rng(0).normal(size=(2, 40, 1))
    m = np.sin(np.arange(40.0))
    for owner, name in ((light, "compiled"), (gradient._Projected, "apply"), (SideBySide, "descend")):
        monkeypatch.setattr(owner, name, forbidden)
    model = MDNRegressor(n_members=1, max_epochs=1, hidden=(4,), random_state=0)
    with _fast.plain(), pytest.warns(UserWarning, match="last of max_epochs"):
        model.fit(X, y.ravel(), metadata=m)
    with pytest.raises(AssertionError, match="fast"):
        model.fit(X, y.ravel(), metadata=m)


def ensemble(kind, *, covariance="diagonal", removal=None, wild=False):
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(90, 3, generator=g).double(), torch.randn(90, 2, generator=g).double()
    y[:5, 0] = torch.nan
    if wild:
        y[7] = 1e7  # its gradient has to be clipped
    columns = {"metadata": torch.randn(90, 1, generator=g).double(), "protected": y.nan_to_num()} if removal else {}
    sample = Sample(X, y, 0.5 + torch.rand(90, generator=g).double(), **columns)
    torch.manual_seed(1)
    network = plan_network(Plan(3, 2, 2, covariance, 1, (6, 5), 0.2, 3, (0.05, 0.05), removal)).double()
    held = hold_out(90, 3, 0.2, np.random.default_rng(0))
    schedule = Schedule(max_epochs=6, patience=2, batch_size=20, learning_rate=0.03, weight_decay=0.1)
    history = train(network, sample, held, schedule, [5, 6, 7], kind)
    return history, network


@pytest.mark.parametrize(
    "options", [{}, {"covariance": "full"}, {"covariance": "low-rank"}, {"removal": Removal(1, 2)}, {"wild": True}]
)
def test_an_ensemble_trains_the_same_by_autograd_and_torchs_optimiser(options):
    (history, network), (other_history, other) = ensemble(SideBySide, **options), ensemble(Running, **options)
    assert history.best_epoch == other_history.best_epoch
    np.testing.assert_allclose(history.validation, other_history.validation, rtol=1e-6)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
