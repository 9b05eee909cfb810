"""The private names of torch: what stands in for each where it is missing, and that they stand in one file."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

import residmix.nn
from residmix.nn import MetadataSequential, Residualize, _torch

GLOBAL = {name: getattr(_torch.modules, name) for name in _torch._GLOBAL}


@pytest.fixture
def bare(monkeypatch):
    """A torch without any of the names, for us; torch itself needs them."""
    monkeypatch.setattr(_torch, "torch", SimpleNamespace(_C=SimpleNamespace()))
    monkeypatch.setattr(_torch, "dispatch", SimpleNamespace())


def test_no_other_file_uses_a_private_name():
    root = Path(residmix.nn.__file__).parent
    private = re.compile(
        r"torch(\.\w+)*\._\w|from torch[.\w]* import .*\b_\w|\._(forward|backward)_(pre_)?hooks|\._buffers"
    )
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if private.search(path.read_text())}
    assert found == {"_torch.py"}


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_is_seen_without_the_private_name(bare, reentrant):
    def gradient(call):
        torch.manual_seed(1)
        net = MetadataSequential(torch.nn.Linear(3, 4), Residualize(4, 1, warmup=0, shrink=0), torch.nn.Tanh()).double()
        for _ in range(3):
            x, m = torch.randn(50, 3, requires_grad=True).double(), torch.randn(50, 1).double()
            call(net, x, m).square().sum().backward()
        return net[1].weight.clone(), net[0].weight.grad

    expected = gradient(lambda net, *given: net(*given))
    found = gradient(lambda net, *given: checkpoint(net, *given, use_reentrant=reentrant))
    assert torch.equal(found[0], expected[0]) and not _torch.recomputing()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)


def test_what_is_not_known_is_taken_for_the_careful_case(bare):
    assert _torch.dispatch_watched() and _torch.saved_tensors_hooked()
    with _torch.without_modes():
        pass


def test_hooks_on_all_modules_are_seen_by_either_name(monkeypatch):
    for _ in range(2):
        assert not _torch.hooked_globally()
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert _torch.hooked_globally()
        handle.remove()
        monkeypatch.setattr(_torch, "modules", SimpleNamespace(**GLOBAL))


def test_buffers_and_hooks_of_a_module_are_found():
    layer = Residualize(3, 1)
    assert set(_torch.buffers(layer)) == {name for name, _ in layer.named_buffers()}
    linear = torch.nn.Linear(2, 2)
    assert not _torch.hooked(linear) and not _torch.forward_hooks(linear)
    linear.register_forward_hook(print)
    assert _torch.hooked(linear) and list(_torch.forward_hooks(linear)) == [print]


def test_this_torch_is_not_older_than_the_floor():
    assert TorchVersion(torch.__version__) >= "2.4"
