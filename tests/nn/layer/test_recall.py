"""Layers whose forward pass is run again by activation checkpointing, and copies of layers in training."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from residmix.nn import MetadataSequential, Residualize


def test_checkpointed_recomputation_counts_nothing_twice_and_gives_the_same_gradients():
    def build():
        torch.manual_seed(1)
        return MetadataSequential(torch.nn.Linear(3, 4), Residualize(4, 1, num_protected=1), torch.nn.Tanh()).double()

    plain, saved = build(), build()
    for _ in range(3):
        x, m, y = torch.randn(50, 3).double(), torch.randn(50, 1).double(), torch.randint(0, 2, (50, 1)).double()
        plain(x, m, y).square().sum().backward()
        checkpoint(saved, x, m, y, use_reentrant=False).square().sum().backward()
    assert saved[1].weight < 150 and saved[1].weight == plain[1].weight
    torch.testing.assert_close(saved[1].coefficients(), plain[1].coefficients(), rtol=0, atol=0)
    torch.testing.assert_close(saved[0].weight.grad, plain[0].weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"estimator": "posterior"}, {"missing": "mean"}, {"space": "feature"}])
def test_each_of_several_batches_is_recomputed_with_its_own_coefficients(options, reentrant):
    def gradients(call):
        torch.manual_seed(0)
        net = MetadataSequential(torch.nn.Linear(3, 4), Residualize(4, 1, warmup=0, **options), torch.nn.Tanh())
        net[1]._warned = True
        x, m = torch.randn(3, 50, 3, requires_grad=True), torch.randn(3, 50, 1)
        views = [call(net, *given) for given in zip(x, m, strict=True)]
        sum(view.pow(3).sum() for view in views).backward()
        return [*views, x.grad, net[0].weight.grad]

    plain = gradients(lambda net, *given: net(*given))
    saved = gradients(lambda net, *given: checkpoint(net, *given, use_reentrant=reentrant))
    for one, other in zip(saved, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_recomputing_a_batch_that_is_forgotten_is_an_error():
    net = MetadataSequential(torch.nn.Linear(3, 4), Residualize(4, 1), torch.nn.Tanh())
    total = sum(checkpoint(net, torch.randn(5, 3), torch.randn(5, 1), use_reentrant=False).sum() for _ in range(17))
    with pytest.raises(RuntimeError, match="isn't among the last 16"):
        total.backward()


def test_a_layer_with_a_penalty_can_be_copied_in_training():
    layer = Residualize(4, 1, estimator="learned")
    layer(torch.randn(50, 4), torch.randn(50, 1))
    other = copy.deepcopy(layer)
    assert layer.penalty.requires_grad and other.penalty is None
    assert torch.equal(other.scatter, layer.scatter)
