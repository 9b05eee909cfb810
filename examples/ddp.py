"""Train a network with a metadata-normalization layer on two processes.

python examples/ddp.py

Each process sees its own half of every batch. The layer's moments are added up over the processes, so that both have
the coefficients of all rows: least squares on what the encoder makes of them.
"""

import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from residmix.nn import MetadataSequential, Residualize, finalize

ROWS, BATCH, PROCESSES = 1200, 100, 2


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    age = torch.randn(ROWS, 1, generator=generator)
    return torch.randn(ROWS, 5, generator=generator) + age, age


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    torch.manual_seed(1)
    model = MetadataSequential(nn.Linear(5, 4), Residualize(4, num_metadata=1), nn.Linear(4, 1))
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.SGD(model.parameters(), 1e-2)
    x, age = rows()
    for batch in torch.arange(ROWS).split(BATCH):
        mine = batch[rank::PROCESSES]
        loss = wrapped(x[mine], age[mine]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    finalize(model, [{"x": x[rank::PROCESSES], "metadata": age[rank::PROCESSES]}])
    torch.save((model[0].state_dict(), model[1].coefficients()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder,), nprocs=PROCESSES)
        (weights, first), (_, second) = (torch.load(f"{folder}/{rank}.pt") for rank in range(PROCESSES))
    x, age = rows()
    encoder = nn.Linear(5, 4)
    encoder.load_state_dict(weights)
    design = torch.cat([age, torch.ones_like(age)], dim=1).double()
    with torch.no_grad():
        slope = torch.linalg.lstsq(design, encoder(x).double()).solution[:1]
    print("both processes have the same coefficients:", torch.equal(first, second))
    print("they are those of all rows:", torch.allclose(first, slope, atol=1e-6))
