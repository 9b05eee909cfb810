"""Extra peak memory while fitting a mixture, beyond the data: measured by the kernel, in a process of its own (Linux).

Run it with ``python benchmarks/em_memory.py [--rows ...]``. A fit of 200 rows goes before, so that loading compiled
code doesn't count; then the peak is reset, and what it exceeds the resident memory by after the fit is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measure(name, rows, columns, components):
    import warnings

    import numpy as np
    import sklearn.mixture

    import residmix

    warnings.simplefilter("ignore")
    make = {"residmix": residmix.GaussianMixture, "scikit-learn": sklearn.mixture.GaussianMixture}[name]
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, columns))
    centres = 2 * rng.normal(size=(components, columns))
    for start in range(0, rows, 10_000):
        part = X[start : start + 10_000]
        part += centres[rng.integers(0, components, len(part))]
    make(components, max_iter=2, random_state=0, init_params="k-means++").fit(X[:200])
    model = make(components, max_iter=5, random_state=0, init_params="k-means++" if name != "residmix" else "short-em")
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    model.fit(X)
    return X.nbytes / 2**20, status("VmHWM") - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--peers", action="store_true", help="scikit-learn as well")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.rows, arguments.columns, arguments.components)
    if arguments.measure:
        data, extra = measure(arguments.measure, *shape)
        print(f"{arguments.measure}: {shape[0]:,} x {shape[1]}, K={shape[2]}: ", end="")
        print(f"data {data:.0f} MB, extra peak {extra:.1f} MB")
        return
    for name in ("residmix", "scikit-learn") if arguments.peers else ("residmix",):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure", name], check=True)


if __name__ == "__main__":
    main()
