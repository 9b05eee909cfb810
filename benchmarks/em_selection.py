"""The whole search, fourteen families and one to nine components, of residmix and of mclust.

    python benchmarks/em_selection.py [--rounds 3] [--no-mclust]

Each search is the first fit of a process of its own, without the import. Seconds are processor time, the least of some
rounds; mclust (R, Debian's r-cran-mclust) is left out where it isn't installed. What each chose stands behind it, with
BIC as mclust has it: larger is better. mclust stops at a gain of 1e-5 and has one start for each number of components,
from clusters of all rows, or of 2,000 where there are more; residmix has two, and stops when little is left to gain.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris

OURS = """
import sys, time, warnings
import numpy as np
import residmix as rm
warnings.simplefilter("ignore")
X, estimator = np.loadtxt(sys.argv[1], delimiter=","), rm.GaussianMixture
began = time.process_time()
model = estimator("auto", covariance_type="auto", random_state=0).fit(X)
print(time.process_time() - began, f"{model.covariance_type_},{model.n_components_}", -model.bic(X))
"""
THEIRS = """
suppressMessages(library(mclust))
X <- as.matrix(read.csv(commandArgs(TRUE)[1], header = FALSE)); set.seed(1)
first <- if (nrow(X) > 2000) list(subset = sample(nrow(X), 2000)) else NULL
time <- system.time(found <- mclustBIC(X, G = 1:9, verbose = FALSE, initialization = first))
best <- which(found == max(found, na.rm = TRUE), arr.ind = TRUE)
cat(time[1] + time[2], paste0(colnames(found)[best[2]], ",", rownames(found)[best[1]]), max(found, na.rm = TRUE), "\\n")
"""


def clusters(n: int, d: int, K: int) -> np.ndarray:
    """Return rows of K clusters, each with a covariance of its own."""
    rng = np.random.default_rng(0)
    parts = [
        rng.normal(size=(n // K, d)) @ (rng.normal(size=(d, d)) / np.sqrt(d) + 0.5 * np.eye(d)) + 3 * rng.normal(size=d)
        for _ in range(K)
    ]
    return np.concatenate(parts)[rng.permutation(n)]


def searched(command: list[str], rounds: int) -> str:
    """Return the least seconds, and what was chosen."""
    found = [subprocess.run(command, check=True, text=True, capture_output=True).stdout.split() for _ in range(rounds)]
    seconds = min(float(one[0]) for one in found)
    return f"{seconds:6.2f} s  {found[0][1]}  BIC {float(found[0][2]):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-mclust", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table, script = Path(folder) / "table.csv", Path(folder) / "mclust.R"
        script.write_text(THEIRS)
        for name, X in (("iris, 150 x 4", load_iris().data), ("10,000 x 5, four clusters", clusters(10_000, 5, 4))):
            np.savetxt(table, X, delimiter=",", fmt="%.17g")
            print(name)
            print(f"  residmix {searched([sys.executable, '-c', OURS, str(table)], arguments.rounds)}", flush=True)
            if not arguments.no_mclust and shutil.which("Rscript"):
                try:
                    print(f"  mclust   {searched(['Rscript', str(script), str(table)], arguments.rounds)}", flush=True)
                except subprocess.CalledProcessError:
                    print("  mclust isn't installed")


if __name__ == "__main__":
    main()
