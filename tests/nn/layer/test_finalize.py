"""finalize: exact coefficients on the encoder as it is, layer by layer."""

import pytest
import torch
from torch import nn

from residmix.nn import MetadataSequential, Residualize, audit, finalize


def data(n=400, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n, 1), generator=g).double()
    m = torch.randn(n, 2, generator=g).double() + y
    x = (
        torch.randn(n, 6, generator=g).double()
        + m @ torch.randn(2, 6, generator=torch.Generator().manual_seed(9)).double()
    )
    return x, m, y


def batches(columns, size=80):
    return list(zip(*(column.split(size) for column in columns), strict=True))


def network(**options):
    options = {"num_protected": 1, **options}
    return MetadataSequential(
        nn.Linear(6, 8), Residualize(8, 2, **options), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 5),
        Residualize(5, 2, **options),
    ).double()  # fmt: skip


def probe(features, m, y):
    keep = torch.cat([y, torch.ones(len(y), 1)], 1).double()
    left, target = (v - keep @ torch.linalg.lstsq(keep, v).solution for v in (features, m))
    rest = target - left @ torch.linalg.lstsq(left, target).solution
    return float((1 - rest.square().sum(0) / target.square().sum(0)).max())


def trained(net, columns, epochs=3):
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(epochs):
        for x, m, y in batches(columns):
            optimiser.zero_grad()
            (net(x, m, y).sum(1, keepdim=True) - y).square().mean().backward()
            optimiser.step()
    return net


def features(net, x, m):
    net.eval()
    with torch.no_grad():
        return net(x, m)


@pytest.mark.parametrize("estimator", ["prior", "posterior", "batch", "learned"])
def test_no_linear_probe_finds_metadata_after_finalize(estimator):
    columns = data()
    net = trained(network(estimator=estimator), columns)
    assert probe(features(net, *columns[:2]), *columns[1:]) > 1e-4
    finalize(net, batches(columns))
    assert probe(features(net, *columns[:2]), *columns[1:]) < 1e-12


def test_on_fresh_data_the_probe_is_at_chance():
    net = trained(network(), data(4000))
    finalize(net, batches(data(4000)))
    fresh = data(4000, seed=5)
    # 5 features of 4,000 rows: chance .00125, plus three standard errors of it (.0008), plus errors of the
    # coefficients of the same size; two columns.
    assert probe(features(net, *fresh[:2]), *fresh[1:]) < 2 * (5 / 4000 + 3 * (10**0.5) / 4000)


def test_finalize_is_layer_by_layer_not_all_at_once():
    columns = data()
    net = trained(network(), columns)
    finalize(net, batches(columns))
    once = trained(network(), columns)
    once.load_state_dict(net.state_dict())
    once[1].reset()
    once[5].reset()
    once.eval()
    with torch.no_grad():
        hidden = once[0](columns[0])
        once[1].accumulate(hidden, *columns[1:])
        once[5].accumulate(once[4](hidden.tanh()), *columns[1:])
    assert probe(features(net, *columns[:2]), *columns[1:]) < 1e-12
    assert probe(features(once, *columns[:2]), *columns[1:]) > 1e-6


def test_training_mode_without_update_equals_evaluation_after_finalize():
    columns = data()
    net = MetadataSequential(nn.Linear(6, 8), Residualize(8, 2, num_protected=1)).double()
    trained(net, columns)
    finalize(net, batches(columns))
    x, m, _ = columns
    assert torch.equal(net.train()(x, m, update=False), net.eval()(x, m))


def test_modes_and_batchnorm_statistics_are_left_alone():
    net = network().train()
    net.insert(1, nn.BatchNorm1d(8).double())
    net[4].eval()
    finalize(net, batches(data()))
    assert net.training and net[1].training and not net[4].training
    assert net[1].num_batches_tracked == 0


def test_drift_is_reported_and_freezing_keeps_the_coefficients():
    columns = data()
    net = trained(network(), columns)
    drift = finalize(net, batches(columns), freeze=True)
    assert set(drift) == {"1", "5"} and drift["5"] > 1e-3
    assert net[1].diagnostics()["drift"] == drift["1"] and net[1].frozen
    before = net[1].coefficients()
    trained(net, columns, 1)
    assert torch.equal(net[1].coefficients(), before)
    with pytest.raises(ValueError, match="frozen"):
        finalize(net, batches(columns))


def test_training_goes_on_after_finalize_and_forgets_it_in_a_horizon():
    columns = data()
    net = network(horizon=100.0)
    finalize(net, batches(columns))
    assert net[1].weight == 400
    trained(net, columns, 2)
    assert net[1].weight < 101
    assert net[1].diagnostics()["effective_rows"] < 250


def test_batch_size_of_the_loader_does_not_matter():
    columns = data()
    one, two = network(), network()
    two.load_state_dict(one.state_dict())
    finalize(one, batches(columns, 400))
    finalize(two, batches(columns, 7))
    torch.testing.assert_close(one[5].coefficients(), two[5].coefficients(), atol=1e-10, rtol=0)


def test_mappings_and_custom_calls_are_understood():
    columns = data()
    net = network()
    finalize(net, [{"x": columns[0], "metadata": columns[1], "protected": columns[2]}])
    expected = net[5].coefficients()
    finalize(net, [(columns[2], columns)], forward=lambda model, batch: model(*batch[1]))
    torch.testing.assert_close(net[5].coefficients(), expected)


def test_a_shared_layer_is_fitted_on_all_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Residualize(6, 2)

        def forward(self, x, m):
            return self.layer(x, m) + self.layer(2 * x, m)

    net = Twice()
    x, m, _ = data()
    finalize(net, [(x[:200], m[:200]), (x[200:], m[200:])])
    assert net.layer.weight == 800


def test_what_cannot_be_finalized_says_why():
    columns = data()
    with pytest.raises(ValueError, match="no Residualize layer"):
        finalize(nn.Linear(6, 2), batches(columns))
    with pytest.raises(ValueError, match="several passes over the data"):
        finalize(network(), iter(batches(columns)))
    with pytest.raises(ValueError, match="empty"):
        finalize(network(), [])
    with pytest.raises(ValueError, match="protected must be passed"):
        finalize(network(), [columns[:2]])
    net = network()
    with pytest.raises(ValueError, match="never reaches layer '5'"):
        finalize(net, [columns], forward=lambda model, batch: model[:4](*batch))


def test_an_error_on_the_way_leaves_the_layer_as_it_was():
    net = MetadataSequential(Residualize(3, 1))
    x, m = torch.randn(50, 3), torch.randn(50, 1)
    finalize(net, [(x, m)])
    coefficients = net[0].coefficients()
    with pytest.raises(ValueError, match="NaN"):
        finalize(net, [(x, m), (x, m * float("nan"))])
    assert torch.equal(net[0].coefficients(), coefficients) and coefficients.any()


def chance_features(n, d=60, seed=0):
    """Correlated features that know nothing of the metadata, and four that do."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n, 1), generator=g).double()
    m = y + torch.randn(n, 1, generator=g).double()
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(9)).double()
    noise = torch.randn(n, d, generator=g).double() @ mixing + y
    return torch.cat([noise, m + torch.randn(n, 4, generator=g).double()], 1), m, y


def partial(values, y):
    return torch.cat([values[y[:, 0] == level] - values[y[:, 0] == level].mean(0) for level in (0, 1)])


def read_from(features, m, y):
    left, target = partial(features, y), partial(m, y)
    rest = target - left @ torch.linalg.pinv(left, rtol=1e-10) @ target
    return 1 - float(rest.square().sum() / target.square().sum())


@pytest.mark.parametrize("shrink", [16, 0])
def test_a_layer_adds_nothing_to_fresh_rows_where_there_was_nothing(shrink):
    x, m, y = chance_features(400)
    net = MetadataSequential(Residualize(64, 1, num_protected=1, shrink=shrink)).double()
    finalize(net, [(x, m, y)])
    net.eval()
    # Exact on these rows, either way.
    assert read_from(net(x, m), m, y) < 1e-9 < 0.5 < read_from(x, m, y)
    fresh, other, label = chance_features(4000, seed=1)
    noise = read_from(fresh[:, :60], other, label)
    after = read_from(net(fresh, other)[:, :60], other, label)
    # Errors of subtracted slopes put 60 / 400 back; a map of the features themselves can't.
    assert (after < noise + 1e-9) if shrink else (after > noise + 0.05)
    assert read_from(net(fresh, other)[:, 60:], other, label) < 0.06 < 0.7 < read_from(fresh[:, 60:], other, label)
    layer = audit(net, [(fresh, other, label)]).layers[0]
    assert not layer.adds


def test_what_is_erased_is_saved_loaded_and_left_when_training_goes_on():
    x, m, y = chance_features(400)

    def network():
        return MetadataSequential(Residualize(64, 1, num_protected=1, horizon=None)).double()

    net, other = network(), network()
    finalize(net, [(x, m, y)])
    assert net[0].erases and (net[0].kept[:60] == 0).all() and (net[0].kept[60:] == 1).all()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(x, m), net.eval()(x, m))
    assert torch.equal(net.train()(x, m, update=False), net.eval()(x, m))
    net.train()(x, m, y)
    assert not net[0].erases
    subtracted = x - (m - m.mean(0)) @ net[0].coefficients()
    net[0].refresh()
    torch.testing.assert_close(net.eval()(x, m), subtracted, rtol=0, atol=1e-9)
    net[0].reset()
    assert not net[0].erases and (net[0].kept == 1).all()


def test_a_state_of_version_1_loads_with_whole_slopes():
    x, m, y = chance_features(400)
    net = MetadataSequential(Residualize(64, 1, num_protected=1)).double()
    net[0].accumulate(x, m, y)
    state = net.state_dict() | {"0._extra_state": torch.tensor([1, 0])}
    other = MetadataSequential(Residualize(64, 1, num_protected=1)).double()
    finalize(other, [(x, m, y)])
    other.load_state_dict(state)
    assert torch.equal(other.eval()(x, m), net.eval()(x, m))


def test_audit_marks_a_layer_that_adds():
    x, m, y = chance_features(150)
    net = MetadataSequential(Residualize(64, 1, num_protected=1)).double()
    net[0].accumulate(torch.cat([x[:, :60], torch.randn(150, 4)], 1).double(), m, y)
    fresh, other, label = chance_features(4000, seed=1)
    fresh[:, 60:] = torch.randn(4000, 4)
    report = audit(net, [(fresh, other, label)])
    assert report.adding == ("0",) and report.layers[0].adds and "easier to predict after this layer" in str(report)
    assert report.to_dict()["layers"][0]["adds"]
    whole = audit(net, [(torch.cat([x[:, :60], torch.randn(150, 4)], 1).double(), m, y)])
    assert "easier to predict after" not in str(whole) or whole.adding


def test_slopes_within_chance_are_no_slopes_in_training_and_others_are_whole():
    x, m, y = chance_features(4000)
    layer = Residualize(64, 1, num_protected=1, horizon=None, warmup=0)
    layer(x, m, y)
    out, given = layer(x, m, y), torch.cat([x[:, :60], x[:, 60:] - (m - m.mean(0)) @ layer.coefficients()[:, 60:]], 1)
    assert torch.equal(out[:, :60], x[:, :60])
    # F is about 4,000 times the ratio of explained to remaining variance, 1 here.
    torch.testing.assert_close(out, given, rtol=0, atol=0.03)
    exact = Residualize(64, 1, num_protected=1, horizon=None, warmup=0, shrink=0)
    exact(x, m, y)
    torch.testing.assert_close(exact(x, m, y), x - (m - m.mean(0)) @ exact.coefficients(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 3.0, 1e6])
@pytest.mark.parametrize(("space", "features"), [("sample", 60), ("feature", 10)])
def test_a_constant_feature_leaves_nothing_of_the_metadata_in_the_others(space, features, constant):
    g = torch.Generator().manual_seed(0)
    m, x = torch.randn(300, 1, generator=g).double(), torch.randn(300, features, generator=g).double()
    x[:, 1] = constant  # of which batches' means differ by rounding
    net = MetadataSequential(Residualize(features, 1, space=space))
    finalize(net, [(x[:100], m[:100]), (x[100:], m[100:])])
    out = net.eval()(x, m)
    assert net[0].erases == (space == "sample")
    torch.testing.assert_close(out[:, 1], x[:, 1], rtol=1e-15, atol=0)
    # It was 1e-5 to 1e-4, from which a linear probe read m with an R2 of .18, as before the layer.
    assert float(((out - out.mean(0)).T @ (m - m.mean(0)) / 300).abs().max()) < 1e-14
