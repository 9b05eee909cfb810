"""Threading metadata through a network, and layers put into an existing one."""

import copy
import io
import threading

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

from residmix.errors import LeakageWarning
from residmix.nn import MetadataSequential, Residualize, attach, finalize


class Block(nn.Module):
    """A residual block as in common image networks."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.norm(self.conv(x)) + x).relu()


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.layer1 = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer1(self.stem(x)).mean((2, 3)))


def pictures(n=64):
    m = torch.randn(n, 2)
    return torch.randn(n, 1, 8, 8) + m[:, :1, None, None], m


def test_nested_layers_get_metadata_and_plain_modules_do_not():
    inner = MetadataSequential(nn.Linear(4, 3), Residualize(3, 2, num_protected=1, warmup=0))
    net = MetadataSequential(nn.Linear(6, 4), nn.ReLU(), inner, nn.Linear(3, 1))
    x, m, y = torch.randn(30, 6), torch.randn(30, 2), torch.randn(30, 1)
    net(x, m, y, sample_weight=torch.ones(30))
    assert net[2][1].diagnostics()["effective_rows"] > 29
    expected = net.eval()[3](inner(net[1](net[0](x)), m))
    assert torch.equal(net(x, m), expected)
    with pytest.raises(ValueError, match="metadata must be passed"):
        net(x)


def first_and_layer(first, **options):
    torch.manual_seed(0)
    width = 4 if isinstance(first, nn.Conv2d) else 6
    return MetadataSequential(first, Residualize(width, 2, maps="channel", warmup=0, **options))


def outputs_and_gradients(net, x, m):
    """Two steps' outputs and gradients; an output that overwrote something has been written to."""
    torch.manual_seed(1)
    seen = []
    for _ in range(2):
        out = net(x, m)
        (out * torch.randn(out.shape)).sum().backward()
        seen.append(out)
    return [*seen, *(weight.grad for weight in net.parameters())], out._version > 0


def test_a_layer_overwrites_what_nothing_else_can_hold_and_gives_the_same():
    x, m = pictures()
    conv = nn.Conv2d(1, 4, 3)
    new, overwrote = outputs_and_gradients(first_and_layer(copy.deepcopy(conv)), x, m)
    old, kept = outputs_and_gradients(first_and_layer(conv, inplace=False), x, m)
    assert overwrote and not kept
    assert all(map(torch.equal, new, old))
    _, overwrote = outputs_and_gradients(first_and_layer(nn.Linear(8, 6)), torch.randn(64, 8), m)
    assert overwrote


class Kept(nn.Conv2d):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


@pytest.mark.parametrize(
    "watch",
    [
        lambda net, note: net[0].register_forward_hook(note),
        lambda net, note: net[1].register_forward_pre_hook(note),
        lambda net, note: net[1].register_forward_hook(note),
        lambda net, note: net[0].register_full_backward_hook(note),
        lambda net, note: net[1].register_full_backward_pre_hook(note),
        lambda net, note: torch.nn.modules.module.register_module_forward_hook(note),
    ],
)
def test_a_hook_sees_what_it_would_see_without_the_layer(watch):
    x, m = pictures()
    net = first_and_layer(nn.Conv2d(1, 4, 3))
    seen = []
    with watch(net, lambda module, *tensors: seen.append(tensors)):
        _, overwrote = outputs_and_gradients(net, x.requires_grad_(), m)
    assert seen and not overwrote


def test_nothing_is_overwritten_behind_other_modules_or_by_subclasses():
    x, m = pictures()
    conv = Kept(1, 4, 3)
    _, overwrote = outputs_and_gradients(first_and_layer(conv), x, m)
    assert not overwrote and torch.equal(conv.last, nn.functional.conv2d(x, conv.weight, conv.bias))
    _, overwrote = outputs_and_gradients(first_and_layer(nn.Sigmoid()), torch.randn(64, 6, requires_grad=True), m)
    assert not overwrote


@pytest.mark.parametrize("after", [lambda out: out, torch.sigmoid])
def test_a_function_put_in_place_of_forward_keeps_its_output(after):
    x, m = torch.randn(64, 6), torch.randn(64, 2)
    net = first_and_layer(nn.Linear(6, 6))
    original, kept = net[0].forward, []

    def patched(x):
        kept.append(after(original(x)))
        return kept[-1]

    net[0].forward = patched
    _, overwrote = outputs_and_gradients(net, x, m)
    assert not overwrote and torch.equal(kept[-1], after(original(x)))


@pytest.mark.skipif(
    not hasattr(checkpointing, "CheckpointPolicy"), reason="selective checkpointing came with torch 2.5"
)
def test_selective_checkpointing_finds_what_it_kept():
    x, m = torch.randn(64, 6), torch.randn(64, 2)
    save = {torch.ops.aten.addmm.default}

    def policy(_, operation, *__, **___):
        policies = checkpointing.CheckpointPolicy
        return policies.MUST_SAVE if operation in save else policies.PREFER_RECOMPUTE

    def contexts():
        return checkpointing.create_selective_checkpoint_contexts(policy)

    plain = first_and_layer(nn.Linear(6, 6)).append(nn.Tanh())
    saved = copy.deepcopy(plain)
    for _ in range(2):
        plain(x, m).square().sum().backward()
        checkpoint(saved, x, m, use_reentrant=False, context_fn=contexts).square().sum().backward()
    torch.testing.assert_close(saved[0].weight.grad, plain[0].weight.grad)


def test_attaching_to_an_image_network_removes_metadata_from_the_block_it_names():
    model = Image()
    keys = set(model.state_dict())
    net = attach(model, ["stem", "layer1.1"], num_metadata=2)
    assert set(model.state_dict()) == keys
    x, m = pictures()
    finalize(net, [((x,), {"metadata": m})], forward=lambda net, batch: net(*batch[0], **batch[1]))
    seen = []
    net.layers["layer1_1"].register_forward_hook(lambda _, args, out: seen.append(out))
    net.eval()(x, metadata=m)
    pooled, c = seen[0].mean((2, 3)), m - m.mean(0)
    assert (c.T @ pooled).abs().max() < 1e-3 * len(x)
    assert net.layers["stem"].maps == "channel" and net.layers["stem"].num_features == 4


def test_attaching_to_a_transformer_block_works_on_tokens_with_and_without_the_fast_path():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    net = attach(encoder, "layers.1", num_metadata=1)
    x, m = torch.randn(24, 5, 8), torch.randn(24, 1)
    net(x, metadata=m)
    assert net.layers["layers_1"].weight > 19
    with torch.no_grad():
        assert net.eval()(x, metadata=m).shape == x.shape
    with pytest.raises(ValueError, match="batch_first"):
        attach(nn.TransformerEncoderLayer(8, 2, 16), "self_attn", num_metadata=1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_inside_an_encoder_are_refused_with_a_way_out():
    x, m, padding = torch.randn(24, 6, 8), torch.randn(24, 1), torch.arange(6) >= torch.randint(2, 5, (24, 1))

    def padded(after, nested):
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        net = attach(nn.TransformerEncoder(block, 2, enable_nested_tensor=nested), after, num_metadata=1)
        net(x, src_key_padding_mask=padding, metadata=m, mask=~padding)
        with torch.no_grad():
            return net.eval()(x, src_key_padding_mask=padding, metadata=m, mask=~padding)

    with pytest.raises(RuntimeError, match="enable_nested_tensor=False"):
        padded("layers.1", True)
    assert padded("layers.1", False).shape == x.shape


def test_nothing_stale_can_be_used():
    net = attach(Image(), "stem", num_metadata=2)
    x, m = pictures()
    net(x, metadata=m)
    with pytest.raises(RuntimeError, match="was called directly"):
        net.model(x)
    with pytest.raises(ValueError, match="metadata must be passed"):
        net(x)


def test_a_module_that_did_not_run_is_an_error():
    class Skips(Image):
        def forward(self, x):
            return self.stem(x)

    net = attach(Skips(), "head", num_metadata=2)
    x, m = pictures()
    with pytest.raises(RuntimeError, match="did not run 'head'"):
        net(x, metadata=m)


def test_copies_and_pickles_of_an_attached_model_have_their_own_layers():
    net = attach(Image(), "layer1", num_metadata=2)
    x, m = pictures()
    net(x, metadata=m)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), torch.load(buffer, weights_only=False)):
        assert torch.equal(other.eval()(x, metadata=m), net.eval()(x, metadata=m))
        other.train()(x, metadata=m)
        assert other.layers["layer1"].weight > 100 > net.layers["layer1"].weight


def test_names_and_widths_that_cannot_be_found_say_so():
    with pytest.raises(ValueError, match="did you mean 'stem'"):
        attach(Image(), "stemm", num_metadata=1)
    with pytest.raises(ValueError, match="num_features"):
        attach(nn.Sequential(nn.ReLU()), "0", num_metadata=1)
    net = attach(nn.Sequential(nn.LSTM(3, 4, batch_first=True)), "0", 1, num_features=4, maps="token")
    out, _ = net(torch.randn(6, 5, 3), metadata=torch.randn(6, 1))
    assert out.shape == (6, 5, 4)


def test_threads_do_not_see_each_others_metadata():
    # One thread waits inside the model while the other passes through it.
    inside, passed = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.stem(x)
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                assert passed.wait(30)
            return self.layer(x)

    net, x, m = attach(Waits(), "layer", num_metadata=1), torch.randn(50, 4), torch.randn(50, 1)
    finalize(net, [{"x": x, "metadata": m}])
    alone, got = net.eval()(x, metadata=m), []
    thread = threading.Thread(target=lambda: got.append(net(x, metadata=m)))
    thread.start()
    assert inside.wait(30)
    other = net(x, metadata=-m)
    passed.set()
    thread.join()
    assert got and torch.equal(got[0], alone) and not torch.equal(other, alone)


def test_attaching_twice_or_under_one_name_is_refused():
    model = Image()
    attach(model, "stem", num_metadata=2)
    with pytest.raises(ValueError, match="already has a Residualize layer after 'stem'"):
        attach(model, "layer1", num_metadata=2)
    model = nn.Sequential()
    model.a, model.a_b = nn.Sequential(), nn.Linear(3, 3)
    model.a.b = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"'a\.b' and 'a_b' would have the same name"):
        attach(model, ["a.b", "a_b"], num_metadata=1)
    with pytest.raises(ValueError, match="no module ''"):
        attach(Image(), "", num_metadata=1)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize(("options", "width"), [({}, 6), ({"bidirectional": True}, 12)])
def test_a_recurrent_layer_is_attached_to_on_its_last_axis(kind, options, width):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = kind(3, 6, batch_first=True, **options), nn.Linear(width, 1)

        def forward(self, x):
            return self.head(self.recurrent(x)[0].mean(1))

    net = attach(Reader(), "recurrent", num_metadata=1)
    layer = net.layers["recurrent"]
    assert (layer.num_features, layer.maps) == (width, "token")
    m = torch.randn(200, 1)
    x, seen = torch.randn(200, 5, 3) + m[:, None], []
    finalize(net, [{"x": x, "metadata": m}])
    layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    net.eval()(x, metadata=m)
    before, after = (part.mean(1).detach() for part in seen[0])
    correlation = lambda part: torch.corrcoef(torch.cat([part, m], 1).T)[-1, :-1].abs().max()  # noqa: E731
    assert correlation(before) > 0.3 and correlation(after) < 1e-4


def test_a_projected_lstm_and_cells_have_their_widths():
    sizes = {nn.LSTM(3, 6, proj_size=2, batch_first=True): 2, nn.LSTMCell(3, 6): 6, nn.GRUCell(3, 5): 5}
    for module, width in sizes.items():
        assert attach(nn.Sequential(module), "0", num_metadata=1).layers["0"].num_features == width


def test_a_layout_with_time_first_and_packed_sequences_are_refused():
    for module in (nn.LSTM(3, 6), nn.GRU(3, 6), nn.Sequential(nn.Linear(3, 3), nn.RNN(3, 6))):
        with pytest.raises(ValueError, match="batch_first=True"):
            attach(nn.Sequential(module), "0", num_metadata=1)
    # Read at its last step, whose shape the caller states.
    inside = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.RNN(3, 6)))
    assert attach(inside, "0", num_metadata=1, num_features=6, maps="element").layers["0"].num_features == 6
    net = attach(nn.Sequential(nn.LSTM(3, 6, batch_first=True)), "0", num_metadata=1)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 5, 3), torch.tensor([5, 4, 3, 2]), batch_first=True)
    with pytest.raises(TypeError, match="packed sequence"):
        net(packed, metadata=torch.randn(4, 1))


def test_detaching_gives_the_model_back_as_it_was():
    for copied in (False, True):
        model = Image()
        x, m = pictures()
        expected = model.eval()(x)
        net = attach(model, ["stem", "layer1"], num_metadata=2)
        finalize(net, [((x,), {"metadata": m})], forward=lambda net, batch: net(*batch[0], **batch[1]))
        if copied:
            net, model = copy.deepcopy(net), None
        assert not torch.equal(net.eval()(x, metadata=m), expected)
        back = net.detach()
        assert copied or back is model
        assert torch.equal(back(x), expected)
        attach(back, "stem", num_metadata=2)
        with pytest.raises(RuntimeError, match="detached"):
            net(x, metadata=m)


@pytest.mark.parametrize("options", [{}, {"space": "feature"}, {"maps": "token"}])
def test_a_layer_without_data_says_in_evaluation_that_everything_passes(options):
    net = MetadataSequential(nn.Linear(4, 3), Residualize(3, 1, **options)).eval()
    x, m = torch.randn(50, 4), torch.randn(50, 1)
    with pytest.warns(LeakageWarning, match="no rows yet"):
        out = net(x, m)
    assert torch.equal(out, net[0](x))
    # Once is enough; after a fit there's nothing to say, and a checkpoint without the buffers is no fit.
    net(x, m)
    finalize(net, [(x, m)])
    assert not torch.equal(net(x, m), net[0](x))
    bare = MetadataSequential(nn.Linear(4, 3), Residualize(3, 1, **options)).eval()
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if k.startswith("0.")}, strict=False)
    with pytest.warns(LeakageWarning, match="no rows yet"):
        bare(x, m)


def test_a_layer_norm_over_a_map_is_residualized_by_element_and_not_along_its_last_axis():
    torch.manual_seed(0)
    m, x = torch.randn(200, 1), torch.randn(200, 1, 5, 5)
    x = x + m[:, :, None, None] * torch.randn(5, 5)
    net = attach(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.LayerNorm([2, 5, 5])), "1", 1)
    finalize(net, [(x, m)], forward=lambda model, batch: model(batch[0], metadata=batch[1]))
    found = torch.cat([net.eval()(x, metadata=m).flatten(1), m], 1).T.double()
    assert net.layers["1"].num_features == 50 and torch.corrcoef(found)[:-1, -1].abs().max() < 1e-5
