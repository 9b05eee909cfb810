"""The convolutional network of Lu et al. (CVPR 2021) on its synthetic images, with and without residualizing layers.

    python benchmarks/nn_images.py --epochs 10 --seeds 0

Conv(1, 16, 5) - ReLU - Conv(16, 32, 5) - ReLU - 84 - ReLU - logit, layers before each ReLU, Adam at 1e-4, batch 200.
Residualize works per channel on the maps (``--maps element``: per element, as the published layers do). Columns as in
nn_surrogate.py. A CPU takes seconds per epoch; the papers train for 100 to 500.
"""

from __future__ import annotations

import argparse
import time
import warnings

import nn_data
import torch
from nn_surrogate import METHODS, figures, refit, report, tensors, train
from torch import Tensor, nn

from residmix.errors import LeakageWarning
from residmix.nn import MetadataSequential


def conv_net(method: str, design: Tensor, maps: str) -> MetadataSequential:
    layer = METHODS[method]
    wide = method != "batch norm" and (maps == "element" or "published" in method)
    return MetadataSequential(
        nn.Conv2d(1, 16, 5), layer(16 * 28 * 28 if wide else 16, design, maps), nn.ReLU(),
        nn.Conv2d(16, 32, 5), layer(32 * 24 * 24 if wide else 32, design, maps), nn.ReLU(), nn.Flatten(),
        nn.Linear(18432, 84), layer(84, design, "element"), nn.ReLU(), nn.Linear(84, 1),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--maps", choices=["channel", "element"], default="channel")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-4)
    options = parser.parse_args()
    warnings.simplefilter("ignore", LeakageWarning)
    sets = []
    for seed, fair in ((1234, False), (1237, False), (1311, True)):
        pictures, confound, y = nn_data.images(seed, deconfounded=fair)
        sets.append(tensors(pictures[:, None], confound, y))
    design = torch.stack(sets[0][2:0:-1], 1)
    print(f"{'method, batch, seed':34s} epoch  loss |   test   fair  dcor2  probe |  after finalize, probe on train")
    for method in options.methods:
        for seed in options.seeds:
            torch.manual_seed(seed)
            start, net = time.perf_counter(), conv_net(method, design, options.maps)
            loss, ran = train(net, sets[0], batch=options.batch, epochs=options.epochs, rate=options.rate, seed=seed)
            before = figures(net, *sets)
            after = figures(net, *sets) if refit(net, sets[0]) else None
            report(f"{method}, {options.batch}, {seed}", loss, ran, before, after, time.perf_counter() - start)


if __name__ == "__main__":
    main()
