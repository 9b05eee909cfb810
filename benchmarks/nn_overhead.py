"""What a residualizing layer adds to a training step of the convolutional network of Lu et al. (CVPR 2021).

    python benchmarks/nn_overhead.py --batch 200 --repeats 60

Conv(1, 16, 5) - ReLU - Conv(16, 32, 5) - ReLU - 84 - ReLU - logit on 32 x 32 images; layers before each ReLU. Variants
take turns step by step, in an order that is drawn anew each time, so that a busy machine slows all alike. Printed are
the fastest and the median step, the ratio to the plain network's step of the same turn (its median, and in brackets
the quartiles of the median over ten parts of the run), and how much memory the system had to hand out anew in a step.

That is none where several networks keep the allocator busy. A process with one network (``--alone NAME`` trains that
alone, "none" the plain one) may give the memory of its maps back after each step and wait for it in the next, whatever
the layers; with glibc ``MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=1000000000`` keeps it.
"""

from __future__ import annotations

import argparse
import resource
import time

import nn_data
import numpy as np
import torch
from nn_images import conv_net
from nn_surrogate import METHODS
from torch import nn

from residmix.nn import Residualize

METHODS["prior, copy"] = lambda d, _, maps: Residualize(d, 1, num_protected=1, maps=maps, inplace=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--variants", nargs="+", help="all unless given")
    parser.add_argument("--alone", metavar="NAME")
    options = parser.parse_args()
    pictures, confound, y = nn_data.images(0, n=(options.batch + 1) // 2)
    x, m, label = (torch.tensor(part, dtype=torch.float32) for part in (pictures[:, None], confound, y))
    design = torch.stack([label, m], 1)
    known = {
        "none": ("baseline", "channel"),
        "none, again": ("baseline", "channel"),
        "batch norm": ("batch norm", "channel"),
        "residualize, channel": ("prior (default)", "channel"),
        "residualize, channel, copy": ("prior, copy", "channel"),
        "residualize, channel, stop": ("prior, stop", "channel"),
        "residualize, element": ("prior (default)", "element"),
        "MDN (published), element": ("MDN (published)", "element"),
        "R-MDN (published), element": ("R-MDN (published)", "element"),
    }
    wanted = options.variants or [name for name in known if name != "none"]
    names = [options.alone] if options.alone else ["none", *wanted]
    nets = {name: conv_net(known[name][0], design, known[name][1]) for name in names}
    optimisers = {name: torch.optim.Adam(net.parameters(), 1e-4) for name, net in nets.items()}
    generator = np.random.default_rng(0)
    turns, faults = [], []
    for _ in range(options.repeats + 3):
        seconds, fault = np.empty(len(nets)), np.empty(len(nets))
        for i in generator.permutation(len(nets)):
            name, net = list(nets.items())[i]
            start, pages = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            optimisers[name].zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(x, m, label).squeeze(1), label).backward()
            optimisers[name].step()
            seconds[i] = time.perf_counter() - start
            fault[i] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
        turns.append(seconds)
        faults.append(fault)
    megabytes = np.median(faults[3:], axis=0) * resource.getpagesize() / 1e6
    times = np.array(turns[3:])
    ratio = times / times[:, :1]
    parts = np.array([np.median(part, axis=0) for part in np.array_split(ratio, min(10, len(ratio)))])
    low, high = np.percentile(parts, [25, 75], axis=0)
    print(f"{'':30s} {'fastest':>8s} {'median':>8s}  ms   ratio of the same turn; of the fastest steps; MB")
    for i, name in enumerate(nets):
        print(
            f"{name:30s} {1e3 * times[:, i].min():8.1f} {1e3 * np.median(times[:, i]):8.1f}      "
            f"{np.median(ratio[:, i]):5.3f} ({low[i]:5.3f} to {high[i]:5.3f});  "
            f"{times[:, i].min() / times[:, 0].min():5.3f};  {megabytes[i]:4.0f}"
        )


if __name__ == "__main__":
    main()
