"""DenseTrunk, MemberWise and the module that joins trunk, layer and head."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from residmix.nn import MixtureDensityHead, MixtureDensityNetwork, Residualize
from residmix.nn.density.network import DenseTrunk, MemberWise


def test_the_trunk_passes_its_input_on_beside_a_perceptron_of_the_compressed_input() -> None:
    trunk, x = DenseTrunk(3, (5,), clip=8.0).double().eval(), 20 * torch.randn(7, 3, dtype=torch.float64)
    layer = trunk.layers[0]
    expected = F.silu(layer(x / (1 + (x / 8.0) ** 2).sqrt()))
    torch.testing.assert_close(trunk(x), torch.cat([expected, x], dim=1))
    assert DenseTrunk(3, ()).out_features == 3


def test_a_far_out_row_moves_the_perceptron_no_further_than_its_clip() -> None:
    trunk = DenseTrunk(1, (4,)).eval()
    far = trunk(torch.tensor([[1e6], [1e9], [8.0]]))[:, :4]
    torch.testing.assert_close(far[0], far[1])
    assert not torch.allclose(far[0], far[2], atol=1e-3)  # control: within the clip, x still counts


def test_each_member_of_an_ensemble_is_the_network_of_its_own_weights() -> None:
    many, x = DenseTrunk(3, (5, 4), members=2).eval(), torch.randn(6, 3)
    for m in range(2):
        one = DenseTrunk(3, (5, 4)).eval()
        for mine, theirs in zip(one.layers, many.layers, strict=True):
            mine.weight.data, mine.bias.data = theirs.weight[m].mT, theirs.bias[m, 0]
        torch.testing.assert_close(many(x)[m], one(x))


def test_dropout_acts_in_training_only() -> None:
    trunk, x = DenseTrunk(3, (50,), dropout=0.5), torch.randn(4, 3)
    assert int((trunk(x) == 0).sum()) > 0
    trunk.eval()
    assert torch.equal(trunk(x), trunk(x)) and int((trunk(x) == 0).sum()) == 0


def test_every_member_is_residualized_on_its_own_moments() -> None:
    h, m = torch.randn(2, 50, 3, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    layers = [Residualize(3, 1) for _ in range(2)]
    for layer, own in zip(layers, h, strict=True):
        layer.accumulate(own, m)
    out = MemberWise(layers).eval()(h, m)
    gap = m - m.mean()
    assert float((gap.T @ out).abs().max()) < 1e-10  # float64 sums over 50 rows
    assert float((gap.T @ layers[0](h[1], m)).abs().max()) > 0.1  # control: the other member's coefficients


def test_the_layer_stands_between_trunk_and_head() -> None:
    x, m = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    layer = Residualize(7, 1)
    network = MixtureDensityNetwork(DenseTrunk(3, (4,)), MixtureDensityHead(7, 2), layer).double().eval()
    with torch.no_grad():
        layer.accumulate(network.backbone(x), m)
        expected = network.head(layer(network.backbone(x), m))
        torch.testing.assert_close(network(x, m).means, expected.means)
        assert not torch.allclose(network(x, m).means, network.head(network.backbone(x)).means)
    with pytest.raises(ValueError, match="no residualize layer"):
        MixtureDensityNetwork(DenseTrunk(3, (4,)), MixtureDensityHead(7, 2)).double()(x, m)
