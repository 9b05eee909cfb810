"""The very first fit in an environment, which compiles, against the same fit once more.

Run it with ``python benchmarks/cold_start.py [--fits penguins full-4 ...]``. Each fit has a process and an empty
numba cache of its own. The seconds of a function are those of its own compilation, without what it makes numba compile
besides; functions are counted with that. Imports (about 1.5 s) come before the clock starts. Two ratios follow, to the
seconds of a process that imports scikit-learn and pandas and no more: those of the fit alone, and of the process with
imports and fit. Both are of processor time, which other work on the machine touches less; the best of `--rounds`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

FITS = [
    *("penguins", "large", "residualizer-4", "residualizer-32"),
    *(f"{family}-{d}" for family in ("full", "tied", "diag", "spherical") for d in (4, 32)),
]
MEASUREMENTS = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


def prepared(name):
    """Return the fit of that name as a function without arguments."""
    import numpy as np
    import pandas as pd

    from residmix import GaussianMixture, Residualizer, ResidualMixture
    from residmix.data import penguins

    rng = np.random.default_rng(0)
    if name == "penguins":
        table = penguins()
        return lambda: ResidualMixture(formula="C(sex)", features=MEASUREMENTS, n_components=3, random_state=0).fit(
            table
        )
    if name == "large":
        X = rng.normal(size=(20_000, 32)) + 3 * rng.normal(size=(4, 32))[rng.integers(0, 4, 20_000)]
        return lambda: GaussianMixture(4, random_state=0).fit(X)
    what, d = name.split("-")
    X = rng.normal(size=(500, int(d))) + 3 * rng.normal(size=(3, int(d)))[rng.integers(0, 3, 500)]
    if what == "residualizer":
        metadata = pd.DataFrame({"site": rng.choice(list("abc"), 500), "age": rng.normal(size=500)})
        return lambda: Residualizer("C(site) + age").fit_transform(X, metadata=metadata)
    return lambda: GaussianMixture(3, covariance_type=what, random_state=0).fit(X)


def watched():
    """Return a list that will be filled with (own seconds, function) whenever numba has compiled one."""
    from numba.core import event

    class Watch(event.Listener):
        def __init__(self):
            self.open, self.found = [], []

        def on_start(self, event):
            self.open.append([time.perf_counter(), 0.0])

        def on_end(self, event):
            began, inside = self.open.pop()
            took = time.perf_counter() - began
            if self.open:
                self.open[-1][1] += took
            function = event.data["dispatcher"].py_func
            self.found.append((took - inside, f"{function.__module__.removeprefix('residmix.')}.{function.__name__}"))

    watch = Watch()
    event.register("numba:compile", watch)
    return watch.found


def measure(name):
    """Print what the fit took the first time and later, and return the seconds of processor time of the first."""
    fit, compiled, seconds = prepared(name), watched(), []
    began = time.process_time()
    for _ in range(3):
        start = time.perf_counter()
        fit()
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            first = time.process_time() - began
    line = f"{name:16} cold {seconds[0]:5.2f} s  warm {min(seconds[1:]):6.3f} s  {len(compiled):2} compiled:"
    print(line, ", ".join(f"{function} {took:.2f}" for took, function in sorted(compiled, reverse=True)[:5]))
    return first


def seconds_of(*command, **environment):
    """Return the processor time of a process, and what it printed."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, check=True, capture_output=True
    )
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, done.stdout.decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", nargs="+", default=FITS, metavar="FIT", help=f"of {', '.join(FITS)}")
    parser.add_argument("--here", action="store_true", help="measure in this process, with the cache there is")
    parser.add_argument("--once", action="store_true", help="fit once in this process and print its processor time")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.once:
        fit, began = prepared(arguments.fits[0]), time.process_time()
        fit()
        print(time.process_time() - began)
        return
    for name in arguments.fits:
        if arguments.here:
            measure(name)
            continue
        imports, whole, alone = [], [], []
        for turn in range(arguments.rounds):
            imports.append(seconds_of("-c", "import sklearn.mixture, pandas")[0])
            with tempfile.TemporaryDirectory() as cache:
                if turn == 0:
                    print(seconds_of(__file__, "--here", "--fits", name, NUMBA_CACHE_DIR=cache)[1].rstrip())
            with tempfile.TemporaryDirectory() as cache:
                spent, printed = seconds_of(__file__, "--once", "--fits", name, NUMBA_CACHE_DIR=cache)
                whole.append(spent)
                alone.append(float(printed))
        ratios = f"fit {min(alone) / min(imports):.2f}x, whole process {min(whole) / min(imports):.2f}x"
        print(f"{'':16} of {min(imports):.2f} s that scikit-learn and pandas take to import: {ratios}", flush=True)


if __name__ == "__main__":
    main()
