"""audit: finds what is there, and nothing where there is nothing."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from residmix.nn import MetadataSequential, Residualize, audit, finalize


def data(n=600, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n, 1), generator=g).double()
    m = torch.randn(n, 1, generator=g).double() + y
    x = torch.randn(n, 4, generator=g).double()
    x[:, 0] += m[:, 0]
    return x, m, y


def finalized(columns, **options):
    net = MetadataSequential(Residualize(4, 1, num_protected=1, **options), nn.ReLU())
    finalize(net, [columns])
    return net


def test_probes_see_the_metadata_before_and_none_of_it_after():
    columns = data()
    layer = audit(finalized(columns), [columns]).layers[0]
    assert layer.before.linear > 0.3 and layer.before.held_out > 0.3 and layer.before.neighbours > 0.1
    assert layer.before.distance_correlation > 0.1
    assert abs(layer.after.linear) < 1e-12 and layer.after.held_out < 0.01
    assert abs(layer.after.distance_correlation) < 0.02
    assert layer.chance == pytest.approx(4 / 599)


def test_the_identity_for_what_goes_through_the_label_holds():
    x, m, y = data()
    columns = (x + 2 * y, m, y)
    layer = audit(finalized(columns), [columns]).layers[0]
    assert layer.after.total == pytest.approx(layer.mediated, abs=1e-10)
    assert layer.mediated > 0.05


def test_a_linear_probe_finds_what_distance_correlation_misses():
    columns = data()
    x, m, y = columns
    stale = MetadataSequential(Residualize(4, 1, num_protected=1, estimator="frozen"))
    # Large noise features and, in one of tiny variance, the metadata: what stale coefficients leave.
    x = torch.cat([1e-3 * (x[:, 1:2] + 10 * m), 10 * x[:, 1:]], 1)
    x[:, 1] = 10 * torch.randn(600, generator=torch.Generator().manual_seed(3)).double()
    layer = audit(stale, [(x, m, y)]).layers[0]
    assert layer.after.distance_correlation < 0.02 and layer.after.linear > 0.9


def test_single_precision_rounding_is_not_a_feature():
    x, m, y = (column.float() for column in data())
    net = MetadataSequential(nn.Linear(4, 12, bias=False), Residualize(12, 1, num_protected=1))
    finalize(net, [(x, m, y)])
    assert abs(audit(net, [(x, m, y)]).layers[0].after.linear) < 1e-6


def test_report_is_a_table_and_plain_json():
    columns = data()
    report = audit(finalized(columns), [columns])
    assert "linear probe, held out" in str(report) and "before" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["rows"] == 600


def test_batches_masks_and_continuous_protected_columns_are_handled():
    g = torch.Generator().manual_seed(1)
    m, y = torch.randn(200, 1, generator=g), torch.randn(200, 1, generator=g)
    x = torch.randn(200, 5, 3, generator=g) + m[:, None]
    net = MetadataSequential(Residualize(3, 1, num_protected=1, maps="token"))
    loader = list(zip(x.split(50), m.split(50), y.split(50), strict=True))
    finalize(net, loader)
    layer = audit(net, loader, max_rows=150).layers[0]
    assert layer.rows == 200 and layer.before.linear > 0.5 > 1e-6 > abs(layer.after.linear)
    assert np.isfinite(layer.before.distance_correlation)


def test_rows_without_weight_are_left_out():
    x, m, y = data()
    weight = (torch.arange(600) % 3 > 0).double()
    loader = [{"x": x, "metadata": m, "protected": y, "sample_weight": weight}]
    net = MetadataSequential(Residualize(4, 1, num_protected=1))
    finalize(net, loader)
    layer = audit(net, loader).layers[0]
    assert layer.rows == 400 and abs(layer.after.linear) < 1e-12
    assert audit(net, [(x, m, y)]).layers[0].after.linear > 1e-6


def test_auditing_changes_nothing():
    columns = data()
    net = finalized(columns).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    audit(net, [columns])
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_constant_column_and_one_that_the_label_gives_are_read_by_nothing():
    net = MetadataSequential(Residualize(3, 3, num_protected=1))
    y = torch.randint(0, 2, (400, 1)).double()
    m = torch.cat([torch.full((400, 1), 0.1), 0.3 * y + 0.7, torch.randn(400, 1)], 1).double()
    x = torch.randn(400, 3).double() + m[:, 2:]
    finalize(net, [(x, m, y)])
    after = audit(net, [(x, m, y)]).layers[0].after
    assert after.linear < 1e-10 and after.held_out < 0.05


@pytest.mark.parametrize("probe", ["held_out", "neighbours"])
def test_a_held_out_probe_knows_nothing_of_the_rows_it_is_judged_on(probe):
    """Fitted on them too, it would read as much as the probe in sample does from 60 features of 100 rows of noise."""
    g = torch.Generator().manual_seed(0)
    x, m = torch.randn(100, 60, generator=g).double(), torch.randn(100, 1, generator=g).double()
    layer = audit(MetadataSequential(Residualize(60, 1)), [(x, m)]).layers[0]
    assert layer.before.linear > 0.5
    assert getattr(layer.before, probe) < 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_what_is_left_of_a_copy_of_the_metadata_is_rounding_and_no_feature(dtype, scale):
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        y = torch.randint(0, 2, (500, 1), generator=g).double()
        m = y + torch.randn(500, 1, generator=g).double()
        x = torch.cat([y + torch.randn(500, 1, generator=g), scale * (2 * m + 7), torch.randn(500, 2, generator=g)], 1)
        columns = (x.to(dtype), m.to(dtype), y.to(dtype))
        net = MetadataSequential(Residualize(4, 1, num_protected=1))
        finalize(net, [columns])
        layer = audit(net, [columns]).layers[0]
        assert layer.before.linear > 0.999 and layer.after.linear < 1e-4 and layer.after.held_out < 0.02
        assert layer.after.neighbours < 0.05


def test_a_small_feature_that_holds_metadata_is_found():
    x, m, y = data()
    x[:, 3] = 1e-6 * m[:, 0] + 3
    layer = audit(MetadataSequential(Residualize(4, 1, num_protected=1, estimator="frozen")), [(x, m, y)]).layers[0]
    assert layer.after.linear > 0.999


@pytest.mark.parametrize("inplace", [True, False])
def test_the_input_is_read_before_a_layer_overwrites_it(inplace):
    x, m, y = data()
    net = MetadataSequential(nn.Identity(), Residualize(4, 1, num_protected=1, inplace=inplace))
    finalize(net, [(x.clone(), m, y)])
    found = audit(net, [(x.clone(), m, y)]).layers[0]
    design = np.column_stack([np.ones(600), y])
    left = np.column_stack([x, m])
    left -= design @ np.linalg.lstsq(design, left, rcond=None)[0]
    fitted = left[:, :4] @ np.linalg.lstsq(left[:, :4], left[:, 4], rcond=None)[0]
    assert found.before.linear == pytest.approx(float(fitted @ fitted / (left[:, 4] @ left[:, 4])))
    assert abs(found.after.linear) < 1e-12
