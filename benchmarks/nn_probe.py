"""What a linear probe reads of the metadata from a residualized tensor before `finalize`, and after it.

    python benchmarks/nn_probe.py --seeds 0 1 2 3 4

Five inputs, one of which is twice the confounder - 32 - ReLU - 8 - layer - logit; 2,000 rows, 20 epochs of Adam. R^2 of
the confounder given the label on the 8 features, in sample: by chance .004.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import nn

from residmix.nn import MetadataSequential, Residualize, audit, finalize


def probes(batch: int, rate: float, seed: int, epochs: int) -> tuple[float, float]:
    torch.manual_seed(seed)
    label = torch.randint(0, 2, (2000, 1)).float()
    confounder = label + torch.randn(2000, 1)
    x = torch.cat([label + torch.randn(2000, 1), 2 * confounder, torch.randn(2000, 3)], 1)
    net = MetadataSequential(
        nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 8), Residualize(8, 1, num_protected=1), nn.Linear(8, 1)
    )
    optimiser = torch.optim.Adam(net.parameters(), rate)
    for _ in range(epochs):
        for rows in torch.randperm(2000).split(batch):
            optimiser.zero_grad()
            logit = net(x[rows], confounder[rows], label[rows])
            nn.functional.binary_cross_entropy_with_logits(logit, label[rows]).backward()
            optimiser.step()
    before = audit(net, [(x, confounder, label)]).layers[0].after.linear
    finalize(net, [(x, confounder, label)])
    return before, audit(net, [(x, confounder, label)]).layers[0].after.linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)  # products this small only wait for more
    for rate in (1e-2, 1e-3):
        for batch in (20, 200):
            found = np.array([probes(batch, rate, seed, options.epochs) for seed in options.seeds])
            before, after = found.T
            print(
                f"learning rate {rate:g}, batch {batch:3d}: before {before.mean():.3f} ({before.min():.3f} to "
                f"{before.max():.3f}), after at most {np.abs(after).max():.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
