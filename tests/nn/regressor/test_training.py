"""Training members side by side: what each becomes, and what the shared steps do."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from residmix.nn._fast.trainer import SideBySide
from residmix.nn.density.network import Masks, MixtureDensityNetwork
from residmix.nn.regressor import training
from residmix.nn.regressor.fitting import Plan, Removal, plan_network
from residmix.nn.regressor.training import Running, Sample, Schedule, hold_out, thread_scope


@pytest.fixture(params=[Running, SideBySide])
def train(request):
    """`train` by autograd and torch's optimiser, and by what is quicker."""
    return functools.partial(training.train, running=request.param)


def sample(n=60, metadata=False):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    y = X[:, :1] + np.where(rng.random((n, 1)) < 0.5, -1.0, 1.0) + 0.2 * rng.normal(size=(n, 1))
    age = torch.tensor(rng.normal(size=(n, 1))) if metadata else None
    columns = {"metadata": age, "protected": torch.tensor(y)} if metadata else {}
    return Sample(torch.tensor(X), torch.tensor(y), torch.tensor(rng.uniform(0.5, 1.5, n)), **columns)


def network(members, removal=None, dropout=0.2):
    torch.manual_seed(1)
    plan = Plan(3, 1, 2, "diagonal", 1, (6, 5), dropout, members, (1e-3,), removal)
    return plan_network(plan).double()


def member(net, m, removal=None):
    """A network of its own with the parameters of member `m` of `net`."""
    one = network(1, removal)
    with torch.no_grad():
        for p, q in zip(one.parameters(), net.parameters(), strict=True):
            p.copy_(q[m : m + 1])
    return one


@pytest.mark.parametrize("removal", [None, Removal(1, 1)])
def test_every_member_becomes_what_it_would_have_become_alone(train, removal) -> None:
    data, held = sample(metadata=removal is not None), hold_out(60, 3, 0.2, np.random.default_rng(0))
    schedule, seeds = Schedule(max_epochs=60, patience=6, batch_size=16, learning_rate=0.05), [5, 6, 7]
    together = network(3, removal)
    start = copy.deepcopy(together)
    history = train(together, data, held, schedule, seeds)
    ended = [int(np.isfinite([row[m] for row in history.validation]).sum()) for m in range(3)]
    assert len(set(ended)) > 1, "the members end at different epochs, so the stack has become smaller on the way"
    for m in range(3):
        alone = member(start, m, removal)
        own = train(alone, data, held[m : m + 1], schedule, seeds[m : m + 1])
        assert own.best_epoch == history.best_epoch[m : m + 1] and own.n_epochs == ended[m]
        np.testing.assert_allclose(own.best_loss[0], history.best_loss[m], rtol=1e-9)
        for p, q in zip(alone.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(p[0], q[m], rtol=1e-7, atol=1e-9)


def test_members_with_representations_of_their_own_are_independent_too(train) -> None:
    data, held = sample(), hold_out(60, 2, 0.2, np.random.default_rng(0))
    h = torch.stack([data.X, 2 * data.X[:, [1, 0, 2]]])
    schedule = Schedule(max_epochs=80, patience=4, batch_size=16, learning_rate=0.05)
    head = network(2, dropout=0.0).head
    head = type(head)(3, 1, 2, members=2).double()
    start = copy.deepcopy(head)
    train(MixtureDensityNetwork(nn.Identity(), head), Sample(h, data.y, data.weight), held, schedule, [1, 2])
    for m in range(2):
        alone = type(head)(3, 1, 2, members=1).double()
        with torch.no_grad():
            for p, q in zip(alone.parameters(), start.parameters(), strict=True):
                p.copy_(q[m : m + 1])
        own = Sample(h[m : m + 1], data.y, data.weight)
        train(MixtureDensityNetwork(nn.Identity(), alone), own, held[m : m + 1], schedule, [m + 1])
        for p, q in zip(alone.parameters(), head.parameters(), strict=True):
            torch.testing.assert_close(p[0], q[m], rtol=1e-7, atol=1e-9)


def test_a_member_is_kept_at_its_best_epoch_and_ends_after_patience(train) -> None:
    data, held = sample(), hold_out(60, 3, 0.2, np.random.default_rng(0))
    net = network(3)
    history = train(net, data, held, Schedule(max_epochs=60, patience=6, batch_size=16, learning_rate=0.05), [5, 6, 7])
    losses = np.array(history.validation)
    for m in range(3):
        epochs = min(history.best_epoch[m] + 6, 60)
        assert np.isfinite(losses[:epochs, m]).all() and np.isnan(losses[epochs:, m]).all()
        assert np.nanargmin(losses[:, m]) + 1 == history.best_epoch[m]
        assert history.best_loss[m] == np.nanmin(losses[:, m])
    with torch.no_grad():
        loss = -net(data.X).log_prob(data.y)
    weight = data.weight * torch.tensor(held)
    torch.testing.assert_close((weight * loss).sum(1) / weight.sum(1), torch.tensor(history.best_loss).double())
    assert all(p.is_contiguous() and p.grad is None for p in net.parameters())


def test_dropout_masks_have_the_rate_and_do_not_depend_on_who_else_is_there() -> None:
    masks = Masks([np.random.default_rng(m) for m in range(3)], 0.3, torch.device("cpu"))
    alone = Masks([np.random.default_rng(1)], 0.3, torch.device("cpu"))
    drawn = [masks(torch.Size([3, 7, 50])) for _ in range(800)]  # more than one block
    own = [alone(torch.Size([1, 7, 50])) for _ in range(800)]
    assert all(torch.equal(one[0], many[1]) for one, many in zip(own, drawn, strict=True))
    masks.keep(torch.tensor([1]))
    assert all(torch.equal(masks(torch.Size([1, 7, 50])), alone(torch.Size([1, 7, 50]))) for _ in range(800))
    values = torch.stack(drawn)
    assert set(values.unique().tolist()) == {0.0, np.float32(1 / 0.7)}
    # 840,000 draws: the standard error of the share is .0005.
    assert float((values == 0).float().mean()) == pytest.approx(0.3, abs=0.002)
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0], drawn[1])


def test_a_member_whose_gradient_is_not_finite_sits_out_and_the_others_go_on(train) -> None:
    data, held = sample(), hold_out(60, 2, 0.2, np.random.default_rng(0))
    schedule = Schedule(max_epochs=3, patience=6, batch_size=16, learning_rate=0.05, weight_decay=0.0)
    X = torch.stack([data.X, data.X])
    X[0, 0] = math.inf
    head = type(network(2).head)(3, 1, 2, members=2).double()
    held[:, 0] = False
    history = train(MixtureDensityNetwork(nn.Identity(), head), Sample(X, data.y, data.weight), held, schedule, [1, 2])
    assert all(p.isfinite().all() for p in head.parameters())
    assert history.best_epoch[1] > 0


@pytest.mark.parametrize("kind", [Running, SideBySide])
def test_matrices_decay_and_biases_do_not(kind) -> None:
    data, held, net = sample(), hold_out(60, 2, 0.2, np.random.default_rng(0)), network(2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = kind(net, data, held, Schedule(weight_decay=0.2), [np.random.default_rng(m) for m in range(2)])
    rows = torch.arange(20).expand(2, 20)
    # Without weight there is no gradient, and only the decay is left.
    state.descend([data.X[rows], data.y[rows]], torch.zeros(2, 20).double(), 0.5)
    state.restore(state.values())
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, before[name] * (1.0 if name.endswith("bias") else 1 - 0.5 * 0.2), msg=name)


@pytest.mark.parametrize("kind", [Running, SideBySide])
def test_the_gradient_of_each_member_is_clipped_to_its_norm(kind) -> None:
    data, held = sample(), hold_out(60, 2, 0.2, np.random.default_rng(0))

    def gradient(size):
        net, rows = network(2, dropout=0.0), torch.arange(20).expand(2, 20)
        state = kind(net, data, held, Schedule(), [np.random.default_rng(m) for m in range(2)])
        y = data.y[rows].clone()
        y[0] *= size  # of the first member only
        state.descend([data.X[rows], y], data.weight[rows] / 20, 0.01)
        # After one step Adam's first moment is a tenth of the gradient.
        if kind is SideBySide:
            return 10 * state.moments[0]
        return 10 * torch.cat([state.optimiser.state[p]["exp_avg"].flatten(1) for p in state.parameters], 1)

    tame, wild, wilder = (gradient(size).norm(dim=1) for size in (1.0, 1e4, 1e8))
    assert 0.01 < tame.max() < 5
    torch.testing.assert_close(wild[0], torch.tensor(5.0).double())
    torch.testing.assert_close(wilder[0], torch.tensor(5.0).double())
    assert wild[1] == wilder[1] == tame[1]


def test_threads_are_as_many_as_torch_has_and_no_more(monkeypatch) -> None:
    seen = torch.get_num_threads()
    try:
        for given, asked, allowed, expected in ((1, 8, "8", 1), (3, 8, "8", 3), (3, 2, "8", 2), (3, 8, "2", 2)):
            monkeypatch.setenv("RESIDMIX_NUM_THREADS", allowed)
            torch.set_num_threads(given)
            with thread_scope(asked):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(seen)
