"""Residualize in training: no leakage, gradients, state, precision, recomputation."""

import copy
import io

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from residmix.nn import MetadataSequential, Residualize
from residmix.nn._fast import light


def auc_of_norm(estimator, batch, share, center="metadata"):
    """AUC of the residual's norm for the label, features pure noise, label and metadata associated."""
    rng = np.random.default_rng([batch, round(100 * share)])
    layer = Residualize(84, 1, num_protected=1, estimator=estimator, center=center)
    layer._warned = True
    norms, labels = [], []
    for _ in range(max(4000 // batch, 120)):
        y = (rng.random(batch) < share).astype(float)
        m = rng.uniform(1, 4, batch) + 2 * y
        r = layer(torch.tensor(rng.normal(size=(batch, 84))), torch.tensor(m), torch.tensor(y))
        norms.append(r.square().sum(1).numpy())
        labels.append(y)
    norms, labels = np.concatenate(norms[20:]), np.concatenate(labels[20:]).astype(bool)
    return mannwhitneyu(norms[labels], norms[~labels]).statistic / (labels.sum() * (~labels).sum())


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("batch", [4, 16, 64])
def test_residuals_of_noise_say_nothing_about_the_label(batch, share):
    # 4,000 to 7,680 rows: the standard error of an AUC of 1/2 is below .011 even at 20/80.
    assert 0.45 < auc_of_norm("prior", batch, share) < 0.55


@pytest.mark.parametrize(("batch", "least"), [(4, 0.9), (16, 0.9), (64, 0.7)])
def test_the_published_convention_gives_the_label_away(batch, least):
    rng = np.random.default_rng(batch)
    y = rng.integers(0, 2, (200, batch)).astype(float)
    m = rng.uniform(1, 4, (200, batch)) + 2 * y
    x = rng.normal(size=(200, batch, 84))
    design = np.stack([y, m, np.ones_like(y)], -1)
    r = x - design[..., 1:] @ (np.linalg.pinv(design) @ x)[:, 1:]
    norm, label = (r**2).sum(-1).ravel(), y.ravel().astype(bool)
    assert mannwhitneyu(norm[label], norm[~label]).statistic / (label.sum() * (~label).sum()) > least


def test_centring_alone_does_not_save_the_batch_fit_from_unequal_classes():
    assert auc_of_norm("batch", 16, 0.2) > 0.65


def primed(**options):
    layer = Residualize(4, 1, num_protected=1, **options)
    y = torch.randint(0, 2, (200, 1)).double()
    m = torch.randn(200, 1).double() + y
    layer(torch.randn(200, 4).double() + m, m, y)
    return layer


def test_an_output_depends_on_no_other_sample_and_on_no_label_of_its_batch():
    layer = primed()
    x, m, y = torch.randn(6, 4).double(), torch.randn(6, 1).double(), torch.randint(0, 2, (6, 1)).double()
    whole = copy.deepcopy(layer)(x, m, y)
    alone = torch.cat([copy.deepcopy(layer)(x[i : i + 1], m[i : i + 1], y[i : i + 1]) for i in range(6)])
    assert torch.equal(whole, alone)
    assert torch.equal(whole, copy.deepcopy(layer)(x, m, 1 - y))
    assert torch.equal(whole, copy.deepcopy(layer).eval()(x, m))
    posterior = primed(estimator="posterior")
    assert not torch.equal(copy.deepcopy(posterior)(x, m, y), copy.deepcopy(posterior)(x, m, 1 - y))


def test_training_without_update_is_evaluation_and_changes_no_state():
    layer = primed()
    before = copy.deepcopy(layer.state_dict())
    x, m = torch.randn(6, 4).double(), torch.randn(6, 1).double()
    assert torch.equal(layer(x, m, update=False), layer.eval()(x, m))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_warmup_leaves_x_alone_until_there_are_rows_enough():
    layer = Residualize(3, 1, warmup=20, horizon=None, shrink=0)
    x, m = torch.randn(10, 3).double(), torch.randn(10, 1).double()
    for _ in range(2):
        assert torch.equal(layer(x, m), x)
    assert not torch.equal(layer(x, m), x)


@pytest.mark.parametrize("estimator", ["batch", "posterior"])
def test_gradients_through_the_fit_are_right(estimator):
    layer = primed(estimator=estimator, grad="through")
    layer._warned = True
    m, y = torch.randn(8, 1).double(), torch.tensor([[0.0], [1.0]]).double().repeat(4, 1)
    x = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    state = copy.deepcopy(layer.state_dict())

    def output(x):
        layer.load_state_dict(state)
        return layer(x, m, y)

    assert torch.autograd.gradcheck(output, x)


def gradient(layer, x, m, y, g, **options):
    x = x.clone().requires_grad_()
    layer(x, m, y, **options).backward(g)
    return x.grad


def test_stopped_gradients_pass_unchanged():
    m, y, g = torch.randn(8, 1).double(), torch.randint(0, 2, (8, 1)).double(), torch.randn(8, 4).double()
    assert torch.equal(gradient(primed(grad="stop"), torch.randn(8, 4).double(), m, y, g), g)


@pytest.mark.parametrize("center", ["metadata", "none"])
@pytest.mark.parametrize("shape", [(80, 4), (80, 4, 3, 2)])
def test_projected_gradient_of_a_batch_fit_is_the_gradient_through_it(center, shape):
    maps = "channel" if len(shape) > 2 else "element"
    x, y = torch.randn(shape).double(), torch.randint(0, 2, (80, 1)).double()
    m, g, weight = torch.randn(80, 1).double() + y, torch.randn(shape).double(), torch.rand(80).double()
    mask = torch.rand(80, 3, 2) < 0.7 if maps == "channel" else None
    through, project = (
        gradient(
            Residualize(4, 1, num_protected=1, estimator="batch", center=center, maps=maps, grad=grad),
            x, m, y, g, sample_weight=weight, mask=mask,
        )
        for grad in ("through", "project")
    )  # fmt: skip
    torch.testing.assert_close(project, through, atol=1e-12, rtol=0)
    assert (project - g).abs().max() > 0.01


def test_projected_gradient_moves_no_feature_along_what_the_layer_undoes():
    layer = primed()
    y = torch.randint(0, 2, (4000, 1)).double()
    m = torch.randn(4000, 1).double() + y
    g, centred = torch.randn(4000, 4).double() + m, m - m.mean()
    left = (centred.T @ gradient(layer, torch.randn(4000, 4).double(), m, y, g)).abs().max()
    # The mean of m and its slope on y are stored ones, from 200 earlier rows; hence not 0.
    assert left < 0.1 * (centred.T @ g).abs().max()


def test_one_sample_keeps_some_of_its_gradient():
    layer, g = primed(), torch.ones(1, 4).double()
    left = gradient(layer, torch.randn(1, 4).double(), torch.tensor([[0.7]]), torch.ones(1, 1), g)
    assert 0 < left.norm() < 2 * g.norm()


def test_resuming_from_a_checkpoint_equals_going_on():
    layer = primed()
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    resumed = Residualize(4, 1, num_protected=1)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    x, m, y = torch.randn(6, 4).double(), torch.randn(6, 1).double(), torch.randint(0, 2, (6, 1)).double()
    assert torch.equal(resumed(x, m, y), layer(x, m, y))
    assert torch.equal(resumed(x, m, y), layer(x, m, y))
    layer.freeze()
    resumed.load_state_dict(layer.state_dict())
    assert resumed.frozen


def test_changing_the_dtype_of_a_model_leaves_the_moments_their_digits():
    layer = primed()
    coef = layer.coefficients()
    layer.half().float().bfloat16()
    assert layer.scatter.dtype == torch.float64 and torch.equal(layer.coefficients(), coef)
    x = torch.randn(5, 4).bfloat16()
    assert layer.eval()(x, torch.randn(5, 1)).dtype == torch.bfloat16


def test_autocast_and_half_precision_features_do_not_blunt_the_statistics():
    age = 70 + 10 * torch.randn(4096, 1)
    x = torch.randn(4096, 8) + (age - 70) @ torch.randn(1, 8) / 10
    exact, low, cast = (Residualize(8, 1, horizon=None) for _ in range(3))
    exact(x, age)
    low(x.bfloat16(), age)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = cast(x, age)
    assert out.dtype == torch.float32 and torch.equal(cast.scatter, exact.scatter)
    error = (low.coefficients() - exact.coefficients()).norm() / exact.coefficients().norm()
    assert 0 < error < 1e-2


@pytest.mark.parametrize("space", ["sample", "feature"])
def test_evaluation_can_be_exported(space):
    layer = Residualize(4, 1, space=space)
    x, m = torch.randn(50, 4), torch.randn(50, 1)
    layer.accumulate(x, m)
    layer.eval()
    arguments = (x, m) if space == "sample" else (x,)
    exported = torch.export.export(layer, arguments).module()
    torch.testing.assert_close(exported(*arguments), layer(*arguments))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("space", ["sample", "feature"])
def test_evaluation_can_be_compiled_without_a_break(space, backend):
    layer = Residualize(4, 1, space=space)
    layer.accumulate(torch.randn(50, 4), torch.randn(50, 1))
    layer.eval()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for rows in (50, 7):
        x, m = torch.randn(rows, 4), torch.randn(rows, 1)
        arguments = (x, m) if space == "sample" else (x,)
        assert torch.equal(compiled(*arguments), layer(*arguments))
    assert not torch.equal(compiled(*arguments), x)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore:.*should not be instantiated")  # torch's
@pytest.mark.parametrize("options", [{}, {"space": "feature"}, {"estimator": "posterior"}])
@pytest.mark.slow
def test_training_can_be_compiled_and_is_the_same(options):
    def run(compiled):
        torch._dynamo.reset()
        torch.manual_seed(0)
        net = MetadataSequential(torch.nn.Linear(8, 6), Residualize(6, 1, num_protected=1, **options))
        net[1]._warned = True
        call = torch.compile(net, backend="aot_eager", fullgraph=not options) if compiled else net
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(4):
            y = torch.randint(0, 2, (64, 1))
            optimiser.zero_grad()
            call(torch.randn(64, 8), torch.randn(64, 1) + y, y).square().mean().backward()
            optimiser.step()
        return net.state_dict()

    plain, compiled = run(False), run(True)
    assert plain["1.weight"] > 0
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_frozen_layer_never_updates():
    layer = Residualize(4, 1, estimator="frozen")
    layer.accumulate(torch.randn(50, 4), torch.randn(50, 1))
    layer.train()(torch.randn(50, 4), torch.randn(50, 1))
    assert layer.weight == 50


def test_feature_space_keeps_its_digits_under_autocast():
    layer = Residualize(4, 1, space="feature")
    m = torch.randn(500, 1)
    x = torch.randn(500, 4) + 3 * m
    layer.accumulate(x, m)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer.eval()(x)
    assert torch.equal(cast, layer(x))


@pytest.mark.parametrize("center", ["metadata", "features", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_metadata": 2, "num_protected": 1},
        {"num_metadata": 1, "num_protected": 2, "horizon": 50, "ridge": 0.1},
        {"num_metadata": 3, "horizon": None, "warmup": 40},
        {"num_metadata": 1, "grad": "stop"},
        {"num_metadata": 2, "num_protected": 1, "maps": "element", "num_features": 600},  # more than a block
    ],
)
def test_compiled_steps_are_those_of_torch(center, options, monkeypatch):
    def run(most, dtype, masked):
        monkeypatch.setattr(light, "_LIGHT", most)
        torch.manual_seed(0)
        layer = Residualize(**({"num_features": 3, "center": center, "maps": "channel", "warmup": 0} | options))
        k, p = layer.num_metadata, layer.num_protected
        seen = []
        for _ in range(4):
            d = layer.num_features
            shape, positions = ((d,), ()) if layer.maps == "element" else ((d, 2, 2), (2, 2))
            x = torch.randn(30, *shape, dtype=dtype, requires_grad=True)
            y, weight, mask = torch.randint(0, 2, (30, p)), torch.rand(30), torch.rand(30, *positions) > 0.3
            m = torch.cat([torch.randn(30, k) + 1e3, torch.ones(30, 1)], 1)[:, -k:]  # constant, if it is the last
            given = {"sample_weight": weight, "mask": mask} if masked else {}
            assert light.is_light(layer, x, m, y) == bool(most)
            out = layer(x, m, y if p else None, **given)
            (out + out.square()).sum().backward()
            seen += [out.detach(), x.grad]
        return seen + list(layer.buffers())

    for dtype, masked in (
        (torch.float64, False),
        (torch.float64, True),
        (torch.float32, False),
        (torch.bfloat16, False),
    ):
        digits = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
        for small, large in zip(run(light._LIGHT, dtype, masked), run(0, dtype, masked), strict=True):
            torch.testing.assert_close(small, large, rtol=digits, atol=digits)


@pytest.mark.parametrize(
    "options", [{}, {"grad": "stop"}, {"space": "feature"}, {"maps": "token"}, {"estimator": "batch"}]
)
def test_in_place_gives_the_same_and_takes_no_memory(options):
    def run(inplace):
        torch.manual_seed(0)
        layer = Residualize(4, 1, inplace=inplace, **options)
        layer._warned = True
        seen = []
        for train in (True, True, False):
            start = torch.randn(30, 5, 4) if layer.maps == "token" else torch.randn(30, 4)
            m = torch.randn(30, 5, 1) if layer.maps == "token" else torch.randn(30, 1)
            start.requires_grad_()
            x = start * 2
            out = layer.train(train)(x, m)
            assert (out.data_ptr() == x.data_ptr()) == inplace
            out.square().sum().backward()
            seen += [out.detach(), start.grad]
        return seen + list(layer.buffers())

    for new, old in zip(run(True), run(False), strict=True):
        assert torch.equal(new, old)


class Doubled(torch.autograd.Function):
    """Twice its input; notes where in memory the gradient of its output lies."""

    lay = 0

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        Doubled.lay = grad.data_ptr()
        return 2 * grad


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("maps", ["channel", "token", "element"])
def test_a_gradient_is_projected_where_it_lies_unless_someone_keeps_it(maps, inplace):
    primed = Residualize((4, 4) if maps == "element" else 4, 1, maps=maps, inplace=inplace, shrink=0)
    primed(torch.randn(200, 4, 4), torch.randn(200, 1))
    start, m, weight = torch.randn(30, 4, 4, requires_grad=True), torch.randn(30, 1), torch.randn(30, 4, 4)

    def run(hook):
        out = copy.deepcopy(primed)(Doubled.apply(start), m)
        out.register_hook(hook)
        # A square, since the gradient of a sum is one number that stands for all.
        (grad,) = torch.autograd.grad(((out - weight) ** 2).sum(), start)
        return grad, 2 * (out.detach() - weight)

    lay, kept = [], []
    free, given = run(lambda grad: lay.append(grad.data_ptr()))
    assert lay == [Doubled.lay]
    assert (free - 2 * given).abs().max() > 1e-3
    same, given = run(kept.append)
    assert torch.equal(same, free)
    assert torch.equal(kept[0], given)
    assert kept[0].data_ptr() != Doubled.lay


def test_in_place_on_what_a_gradient_needs_is_torchs_error():
    x = torch.randn(30, 4, requires_grad=True).exp()
    out = Residualize(4, 1, inplace=True)(x, torch.randn(30, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_gradients_of_gradients_lose_the_same():
    layer, weight = primed(), torch.linspace(0.5, 2, 4, dtype=torch.float64)
    x, m = torch.randn(20, 4, dtype=torch.float64, requires_grad=True), torch.randn(20, 1)
    given = (layer(x, m, torch.randint(0, 2, (20, 1))) * weight).pow(3).sum()
    (once,) = torch.autograd.grad(given, x, retain_graph=True)
    (again,) = torch.autograd.grad(given, x, create_graph=True)
    torch.testing.assert_close(once, again.detach(), rtol=1e-12, atol=1e-12)
    (second,) = torch.autograd.grad(again[0].sum(), x)
    assert second.abs().max() > 0


def test_an_activation_that_overflows_warns_of_nothing_and_stays_infinite():
    layer = primed()
    x = torch.full((3, 4), float("inf"), dtype=torch.float64)
    assert not layer(x, torch.randn(3, 1), torch.ones(3)).isfinite().any()
