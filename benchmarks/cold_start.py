"""The very first fit in an environment, which compiles, against the same fit once more.

Run it with ``python benchmarks/cold_start.py [--fits penguins full-4 ...]``. Each fit has a process and an empty
numba cache of its own. The seconds of a function are those of its own compilation, without what it makes numba compile
besides; functions are counted with that. Imports (about 1.5 s) come before the clock starts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

FITS = [
    *("penguins", "residualizer-4", "residualizer-32"),
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
    fit, compiled, seconds = prepared(name), watched(), []
    for _ in range(3):
        began = time.perf_counter()
        fit()
        seconds.append(time.perf_counter() - began)
    line = f"{name:16} cold {seconds[0]:5.2f} s  warm {min(seconds[1:]):6.3f} s  {len(compiled):2} compiled:"
    print(line, ", ".join(f"{function} {took:.2f}" for took, function in sorted(compiled, reverse=True)[:5]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", nargs="+", default=FITS, metavar="FIT", help=f"of {', '.join(FITS)}")
    parser.add_argument("--here", action="store_true", help="measure in this process, with the cache there is")
    arguments = parser.parse_args()
    for name in arguments.fits:
        if arguments.here:
            measure(name)
            continue
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--here", "--fits", name]
            subprocess.run(command, env={**os.environ, "NUMBA_CACHE_DIR": cache}, check=True)


if __name__ == "__main__":
    main()
