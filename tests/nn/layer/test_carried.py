"""A layer that ends with a transport: spread goes, too; checkpoints have it; training does without it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from torch import nn

from residmix.nn import MetadataSequential, Residualize, audit, finalize


def rows(seed, n=2000):
    """Inputs whose location and spread depend on a site of two levels."""
    rng = np.random.default_rng(seed)
    site = rng.integers(2, size=n)
    x = rng.normal(size=(n, 3)) * np.where(site == 1, 2.0, 1.0)[:, None] + site[:, None]
    return torch.as_tensor(x), torch.as_tensor(site[:, None].astype(float))


def network():
    torch.manual_seed(0)
    return MetadataSequential(nn.Linear(3, 3), Residualize(3, 1)).double()


def outputs(net, x, m):
    net.eval()
    with torch.no_grad():
        return net(x, m)


def reads(features, site):
    half = len(features) // 2
    forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0).fit(features[:half], site[:half])
    return roc_auc_score(site[half:], forest.predict_proba(features[half:])[:, 1])


@pytest.fixture(scope="module")
def carried():
    net = network()
    finalize(net, [rows(0)], transport="full", n_components=1)
    return net


def test_a_forest_reads_the_spread_after_the_layer_and_nothing_after_its_transport(carried):
    (x, m), plain = rows(1), network()
    finalize(plain, [rows(0)])
    site = m[:, 0].numpy()
    assert reads(outputs(plain, x, m).numpy(), site) > 0.7
    assert reads(outputs(carried, x, m).numpy(), site) < 0.55


def test_the_audit_has_the_certificate(carried):
    layer = audit(carried, [rows(1)]).layers[0]
    assert layer.certificate.passed and layer.certificate.method == "full"
    assert "its transport" in str(audit(carried, [rows(1)]))
    assert layer.before.linear > 0.05 > layer.after.linear


def test_copies_and_checkpoints_have_it_and_reset_takes_it_off(carried):
    x, m = rows(1, 50)
    expected = outputs(carried, x, m)
    for same in (copy.deepcopy(carried), pickle.loads(pickle.dumps(carried))):
        assert torch.equal(outputs(same, x, m), expected)
    fresh = network()
    state = carried.state_dict()
    assert "1.carried.file" in state
    fresh.load_state_dict(state)
    assert torch.equal(outputs(fresh, x, m), expected)
    # and a checkpoint without one takes it off
    linear = network()
    finalize(linear, [rows(0)])
    fresh.load_state_dict(linear.state_dict())
    assert torch.equal(outputs(fresh, x, m), outputs(linear, x, m))
    fresh[1].reset()
    assert getattr(fresh[1], "carried", None) is None


def test_training_does_without_it_and_evaluation_needs_metadata(carried):
    x, m = rows(1, 50)
    net = copy.deepcopy(carried).train()
    net(x, m, update=False)
    net(x, m).sum().backward()  # gradients pass
    assert net[0].weight.grad.abs().sum() > 0
    feature = MetadataSequential(Residualize(3, 1, space="feature")).double()
    finalize(feature, [rows(0, 400)], transport="spread")
    feature.eval()
    with pytest.raises(ValueError, match="the layer ends with a transport"):
        feature(x)


def test_what_can_not_be_carried_is_refused_and_a_failed_fit_leaves_the_layer_as_it_was(carried):
    x, m = rows(0, 100)
    with pytest.raises(ValueError, match="has protected columns"):
        finalize(MetadataSequential(Residualize(3, 1, num_protected=1)).double(), [(x, m, m)], transport="full")
    with pytest.raises(ValueError, match="maps='channel'"):
        finalize(MetadataSequential(Residualize(3, 1, maps="channel")),
                 [(x, m)], transport="full")  # fmt: skip
    net = copy.deepcopy(carried)
    before = outputs(net, x, m)
    with pytest.raises(ValueError, match="method"):
        finalize(net, [(x, m)], transport="all")
    assert torch.equal(outputs(net, x, m), before)
