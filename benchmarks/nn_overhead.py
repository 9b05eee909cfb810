"""What a residualizing layer adds to a training step of the convolutional network of Lu et al. (CVPR 2021).

    python benchmarks/nn_overhead.py --batch 200 --repeats 15

Conv(1, 16, 5) - ReLU - Conv(16, 32, 5) - ReLU - 84 - ReLU - logit on 32 x 32 images; layers before each ReLU. Variants
take turns within every repeat, so that a busy machine slows all alike; the ratio of medians is printed.
"""

from __future__ import annotations

import argparse
import time

import nn_data
import numpy as np
import torch
from nn_images import conv_net
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--variants", nargs="+", help="all unless given")
    options = parser.parse_args()
    pictures, confound, y = nn_data.images(0, n=(options.batch + 1) // 2)
    x, m, label = (torch.tensor(part, dtype=torch.float32) for part in (pictures[:, None], confound, y))
    design = torch.stack([label, m], 1)
    known = {
        "none": ("baseline", "channel"),
        "batch norm": ("batch norm", "channel"),
        "residualize, channel": ("prior (default)", "channel"),
        "residualize, element": ("prior (default)", "element"),
        "MDN (published), element": ("MDN (published)", "element"),
        "R-MDN (published), element": ("R-MDN (published)", "element"),
    }
    wanted = options.variants or list(known)
    nets = {name: conv_net(known[name][0], design, known[name][1]) for name in ["none", *wanted]}
    optimisers = {name: torch.optim.Adam(net.parameters(), 1e-4) for name, net in nets.items()}
    times: dict[str, list[float]] = {name: [] for name in nets}
    for repeat in range(options.repeats + 2):
        for name, net in nets.items():
            start = time.perf_counter()
            optimisers[name].zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(x, m, label).squeeze(1), label).backward()
            optimisers[name].step()
            if repeat > 1:
                times[name].append(time.perf_counter() - start)
    plain = np.median(times["none"])
    for name, seconds in times.items():
        print(f"{name:28s} {1e3 * np.median(seconds):8.1f} ms/step  {np.median(seconds) / plain:6.3f} x")


if __name__ == "__main__":
    main()
