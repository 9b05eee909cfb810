"""Five stages: the confounder parts the classes more and more, the main effect less (Shah et al., ICML 2025).

    python benchmarks/nn_continual.py --epochs 30 --seeds 0 1 2

One network (the surrogate of nn_surrogate.py) is trained stage after stage, batch 128, and tested on each stage's fresh
images. Best balanced accuracy without the confounder: .750, .688, .625, .562, .500; with it alone .750 ... 1. Printed:
balanced accuracy minus that optimum after each stage, on that stage; then on the first stage at the end.
"""

from __future__ import annotations

import argparse
import warnings

import nn_data
import numpy as np
import torch
from nn_surrogate import METHODS, Columns, features, refit, surrogate, tensors, train

from residmix.errors import LeakageWarning

SHIFTS = (0.0, 0.125, 0.25, 0.375, 0.5)


def stage(seed: int, shift: float) -> Columns:
    pictures, confound, y = nn_data.shifting_images(seed, shift)
    return tensors(nn_data.pool(pictures), confound, y)


def deviation(net: torch.nn.Module, columns: Columns, shift: float) -> float:
    accuracy = nn_data.balanced_accuracy(features(net, *columns[:2])[1], columns[2].numpy())  # type: ignore[arg-type]
    return accuracy - (0.75 - shift / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    warnings.simplefilter("ignore", LeakageWarning)
    torch.set_num_threads(1)
    stages = [stage(10, shift) for shift in SHIFTS]
    tests = [stage(11, shift) for shift in SHIFTS]
    design = torch.stack(stages[0][2:0:-1], 1)
    print(f"{'method':24s}" + "".join(f"{shift:>16.3f}" for shift in SHIFTS) + f"{'first, at end':>16s}")
    for method in options.methods:
        rows = []
        for seed in options.seeds:
            torch.manual_seed(seed)
            net, row = surrogate(method, design), []
            for columns, test, shift in zip(stages, tests, SHIFTS, strict=True):
                train(net, columns, batch=128, epochs=options.epochs, rate=options.rate, seed=seed)
                refit(net, columns)
                row.append(deviation(net, test, shift))
            rows.append([*row, deviation(net, tests[0], SHIFTS[0])])
        mean, spread = np.mean(rows, 0), np.std(rows, 0)
        print(f"{method:24s}" + "".join(f"{a:+9.3f} ± {b:.3f}" for a, b in zip(mean, spread, strict=True)), flush=True)


if __name__ == "__main__":
    main()
