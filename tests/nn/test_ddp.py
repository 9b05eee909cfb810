"""Two processes with gloo and an uneven last batch equal one process that saw everything."""

import subprocess
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from residmix.nn import MetadataSequential, Residualize, finalize

pytestmark = pytest.mark.slow  # each starts processes that import and compile everything anew


def data():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (85, 1), generator=g).double()
    m = 1e4 + torch.randn(85, 1, generator=g).double() + y
    return torch.randn(85, 3, generator=g).double() + m, m, y


def network(horizon, **options):
    torch.manual_seed(1)
    return MetadataSequential(
        nn.Linear(3, 4), Residualize(4, 1, num_protected=1, horizon=horizon, warmup=0, **options), nn.Linear(4, 1)
    ).double()


def state(net):
    return {name: value for name, value in net.state_dict().items() if name.startswith("1.")}


@contextmanager
def counted():
    """Calls of all_reduce from Python; DDP averages gradients without one."""
    calls, reduce = [], dist.all_reduce

    def counting(*args, **options):
        calls.append(1)
        return reduce(*args, **options)

    dist.all_reduce = counting
    try:
        yield calls
    finally:
        dist.all_reduce = reduce


def accumulate(call, net, parts, no_sync):
    """Gradients of the first parts added up without averaging over processes, the last with it."""
    for i, part in enumerate(parts):
        with nullcontext() if i == len(parts) - 1 else no_sync():
            call(*part).square().sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def work(rank, store, out):
    torch.set_num_threads(1)
    # Long enough for a machine with other things to do; where one process fails, the other ends by it.
    patience = timedelta(minutes=15)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=patience)
    try:
        results = {}
        columns = data()
        for horizon in (None, 40.0):
            for broadcast in (True, False):
                net = network(horizon)
                wrapped = DistributedDataParallel(net, broadcast_buffers=broadcast)
                # 20 rows a step, the last step 5: three here, two there (a sampler deals rows out in turn).
                with counted() as calls:
                    for part in torch.arange(85).split(20):
                        wrapped(*(column[part[rank::2]] for column in columns)).sum().backward()
                results[horizon, broadcast] = state(net), len(calls)
        net = network(40.0, grad="stop")
        wrapped = DistributedDataParallel(net)
        parts = [tuple(column[part[rank::2]] for column in columns) for part in torch.arange(85).split(20)]
        gradients = accumulate(wrapped, net, parts, wrapped.no_sync)
        results["no_sync"] = state(net), gradients
        net = network(None)
        finalize(net, [tuple(column[rank::2] for column in columns)])
        results["finalize"] = state(net), 0
        local = network(None, sync=False)
        local(*(column[rank::2] for column in columns))
        results["local"] = state(local), 0
        torch.save(results, f"{out}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("ddp")
    children = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(out / "store"), str(out)]) for rank in (0, 1)
    ]
    assert [child.wait() for child in children] == [0, 0]
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("broadcast", [True, False])
@pytest.mark.parametrize("horizon", [None, 40.0])
def test_two_processes_equal_one(results, horizon, broadcast):
    net = network(horizon)
    columns = data()
    for part in torch.arange(85).split(20):
        net(*(column[part] for column in columns))
    for name, value in state(net).items():
        mine, theirs = (result[horizon, broadcast][0][name] for result in results)
        assert torch.equal(mine, theirs), name
        torch.testing.assert_close(mine, value, rtol=1e-9, atol=1e-9, msg=name)


def test_one_all_reduce_a_step(results):
    assert results[0][None, True][1] == 5


def test_gradients_accumulate_without_sync_while_moments_are_added_up_every_step(results):
    net, columns = network(40.0, grad="stop"), data()
    parts = [tuple(column[part] for column in columns) for part in torch.arange(85).split(20)]
    expected = accumulate(net, net, parts, nullcontext)
    for name, value in state(net).items():
        mine, theirs = (result["no_sync"][0][name] for result in results)
        assert torch.equal(mine, theirs), name
        torch.testing.assert_close(mine, value, rtol=1e-9, atol=1e-9, msg=name)
    for name, value in expected.items():
        mine, theirs = (result["no_sync"][1][name] for result in results)
        assert torch.equal(mine, theirs) and value.abs().max() > 1
        # DDP averages over the two processes where one process has the sum.
        torch.testing.assert_close(2 * mine, value, rtol=1e-9, atol=1e-9, msg=name)


def test_finalize_adds_up_the_shards(results):
    net = network(None)
    finalize(net, [data()])
    for name, value in state(net).items():
        torch.testing.assert_close(results[0]["finalize"][0][name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_processes_differ_when_they_are_not_added_up(results):
    mine, theirs = (result["local"][0]["1.coef"] for result in results)
    assert not torch.equal(mine, theirs)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2], sys.argv[3])
