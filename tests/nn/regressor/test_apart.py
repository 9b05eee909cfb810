"""Members trained apart: what they would have become together, and the same bits for any number of threads."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from residmix.nn._fast.trainer import SideBySide
from residmix.nn.density.network import MixtureDensityNetwork
from residmix.nn.regressor import apart, fitting, training
from residmix.nn.regressor.apart import train_apart
from residmix.nn.regressor.estimator import MDNRegressor
from residmix.nn.regressor.fitting import Plan, plan_network
from residmix.nn.regressor.training import Running, Sample, Schedule, hold_out

MEMBERS = 5


def sample(n=60, dtype=torch.float64):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    y = X[:, :1] + np.where(rng.random((n, 1)) < 0.5, -1.0, 1.0) + 0.2 * rng.normal(size=(n, 1))
    return Sample(*(torch.tensor(a, dtype=dtype) for a in (X, y, rng.uniform(0.5, 1.5, n))))


def network(dropout=0.2, dtype=torch.float64):
    torch.manual_seed(1)
    return plan_network(Plan(3, 1, 2, "diagonal", 1, (6, 5), dropout, MEMBERS, (1e-3,), None)).to(dtype)


HOW = Schedule(max_epochs=60, patience=6, batch_size=16, learning_rate=0.05), [5, 6, 7, 8, 9]


@pytest.mark.parametrize("running", [Running, SideBySide])
def test_members_become_what_they_would_have_become_together(running):
    data, held = sample(), hold_out(60, MEMBERS, 0.2, np.random.default_rng(0))
    together = network()
    alone = copy.deepcopy(together)
    expected = training.train(together, data, held, *HOW, running)
    history = train_apart(alone, data, held, *HOW, running, hands=2)
    assert len(set(expected.best_epoch)) > 1
    assert history.best_epoch == expected.best_epoch and history.n_epochs == expected.n_epochs
    np.testing.assert_allclose(history.best_loss, expected.best_loss, rtol=1e-9)
    np.testing.assert_allclose(history.validation, expected.validation, rtol=1e-6)  # NaN in the same places
    assert not alone.training
    for p, q in zip(alone.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_the_number_of_threads_changes_no_bit():
    """Whose parts are chosen by it have others: products of one member and of three are summed in other orders."""
    data, held = sample(600, torch.float32), hold_out(600, MEMBERS, 0.2, np.random.default_rng(0))
    start, ended = network(dtype=torch.float32), {}
    for hands in (1, 2, 3):
        ended[hands] = copy.deepcopy(start)
        train_apart(ended[hands], data, held, *HOW, SideBySide, hands=hands)
    for one, two, three in zip(*(net.parameters() for net in ended.values()), strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


def test_representations_of_their_own_go_with_the_members():
    data, held = sample(), hold_out(60, MEMBERS, 0.2, np.random.default_rng(0))
    h = torch.stack([m * data.X for m in range(1, MEMBERS + 1)])
    head = network(dropout=0.0).head
    head = type(head)(3, 1, 2, members=MEMBERS).double()
    nets = [MixtureDensityNetwork(nn.Identity(), copy.deepcopy(head)) for _ in range(2)]
    own = Sample(h, data.y, data.weight)
    training.train(nets[0], own, held, *HOW, SideBySide)
    train_apart(nets[1], own, held, *HOW, SideBySide, hands=2)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:a member was best in the last")
def test_a_large_table_is_learned_by_two_threads_and_each_part_tells_of_itself(monkeypatch, capsys):
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", "2")
    before, seen, barrier = torch.get_num_threads(), set(), threading.Barrier(2, timeout=60)
    trained = apart._trained

    def watched(part, *given):
        barrier.wait()  # breaks if one thread does both
        seen.add(tuple(part))
        return trained(part, *given)

    monkeypatch.setattr(apart, "_trained", watched)
    torch.set_num_threads(2)
    try:
        rng = np.random.default_rng(0)
        X = rng.normal(size=(9000, 2))
        MDNRegressor(max_epochs=2, random_state=0, verbose=1, n_components=2).fit(X, X[:, 0] + rng.normal(size=9000))
    finally:
        torch.set_num_threads(before)
    assert seen == {(0, 1, 2), (3, 4)}
    told = capsys.readouterr().err
    assert told.count("of members 1 to 3") == told.count("of members 4 to 5") == 2


@pytest.mark.filterwarnings("ignore:a member was best in the last")
def test_small_tables_are_learned_in_one_piece(monkeypatch):
    monkeypatch.setattr(fitting, "train_apart", None)
    X = np.random.default_rng(0).normal(size=(200, 2))
    MDNRegressor(max_epochs=2, random_state=0).fit(X, X[:, 0])
