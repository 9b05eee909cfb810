"""One EM iteration against pomegranate and Spark's Gaussian mixtures, answers compared first.

Run it with ``python benchmarks/em_peers.py [--shapes 100000x8x8 ...]``, shapes being rows x columns x components. A
peer that isn't installed is left out (``pip install pomegranate pyspark``; Spark needs Java 17). All begin with the
same weights, means and covariances, do the same number of iterations, and add nothing to covariances. pomegranate
computes in float64 on two threads. Spark runs as ``local[2]``, its rows in the memory of the Java process:
``spark.mllib`` takes a start, so its means are compared; ``spark.ml``, the newer of the two, takes none, so only its
time per iteration counts. Spark's time is that of the further iterations of a longer run: starting a job isn't held
against it. ``spark.mllib`` adds 2e-16 to every density, which is more than the densities themselves in 32 dimensions:
there its answer is another one.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

import numpy as np

from residmix import GaussianMixture

SHAPES = ["100000x8x8", "100000x32x16"]
FEW = 2


def timed(function):
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def pomegranate_means(X, weights, means, covariance, iterations):
    """Return seconds and means."""
    import torch
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    torch.set_num_threads(2)
    X = torch.from_numpy(X)
    # copies, since it changes what it's given
    parts = [Normal(torch.tensor(mean), torch.tensor(covariance), covariance_type="full") for mean in means]
    # a tolerance of minus infinity: it stops when the gain is smaller
    model = GeneralMixtureModel(parts, priors=torch.tensor(weights), max_iter=iterations, tol=-np.inf)
    seconds, _ = timed(lambda: model.fit(X))
    return seconds, np.stack([part.means.detach().numpy() for part in model.distributions])


class Spark:
    """A local Spark with two threads, quiet."""

    def __init__(self):
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        builder = builder.config("spark.driver.memory", "4g").config("spark.log.level", "ERROR")
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        self.session = builder.getOrCreate()

    def mllib(self, X, weights, means, covariance, iterations):
        """Return seconds of the iterations after the first few, and means after all of them."""
        from pyspark.mllib.clustering import GaussianMixture as Mixture
        from pyspark.mllib.linalg import DenseMatrix, Vectors
        from pyspark.mllib.stat.distribution import MultivariateGaussian

        d = X.shape[1]
        rows = self.session.sparkContext.parallelize([Vectors.dense(row) for row in X], 2).cache()
        rows.count()
        full = DenseMatrix(d, d, covariance.ravel().tolist())
        start = _Start(weights, [MultivariateGaussian(Vectors.dense(mean), full) for mean in means])

        def run(n):
            return Mixture.train(rows, len(means), convergenceTol=1e-300, maxIterations=n, initialModel=start)

        run(1)
        few = min(timed(lambda: run(FEW))[0] for _ in range(2))
        more, model = timed(lambda: run(FEW + iterations))
        rows.unpersist()
        return more - few, np.stack([g.mu.toArray() for g in model.gaussians])

    def ml(self, X, K, iterations):
        """Return seconds of the iterations after the first few."""
        import pandas as pd
        from pyspark.ml.clustering import GaussianMixture as Mixture
        from pyspark.ml.functions import array_to_vector

        self.session.conf.set("spark.sql.execution.arrow.pyspark.enabled", "true")
        table = self.session.createDataFrame(pd.DataFrame({"x": list(X)})).repartition(2)
        table = table.select(array_to_vector("x").alias("features")).cache()
        table.count()

        def run(n):
            return Mixture(k=K, tol=0.0, maxIter=n, seed=0).fit(table)

        run(1)
        few = min(timed(lambda: run(FEW))[0] for _ in range(2))
        more, _ = timed(lambda: run(FEW + iterations))
        table.unpersist()
        return more - few


class _Start:
    """What `train` reads of a model to begin from."""

    def __init__(self, weights, gaussians):
        self.k, self.weights, self.gaussians = len(gaussians), weights.tolist(), gaussians


def compare(n, d, K, iterations, spark):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) + rng.normal(size=(K, d))[rng.integers(0, K, n)]
    weights, means, covariance = np.full(K, 1 / K), X[:K].copy(), np.cov(X.T).reshape(d, d)
    precisions = np.stack([np.linalg.inv(covariance)] * K)
    setting = {"n_components": K, "tol": 0, "reg_covar": 0.0}
    start = {"weights_init": weights, "means_init": means, "precisions_init": precisions}

    def ours(count):
        return GaussianMixture(**setting, **start, max_iter=count).fit(X)

    ours(1)
    seconds, model = min((timed(lambda: ours(iterations)) for _ in range(5)), key=lambda pair: pair[0])
    each = seconds / iterations
    print(f"{n:>9,} x {d:<3} K={K:<2}  residmix {each * 1e3:.2f} ms/iteration", flush=True)
    try:
        taken, found = min((pomegranate_means(X, weights, means, covariance, iterations) for _ in range(2)), key=first)
        report("pomegranate", taken / iterations, each, np.abs(found - model.means_).max())
    except ImportError:
        print("    pomegranate isn't installed")
    if spark is None:
        print("    pyspark isn't installed")
        return
    taken, found = spark.mllib(X, weights, means, covariance, iterations)
    report("Spark mllib", taken / iterations, each, np.abs(found - ours(FEW + iterations).means_).max())
    report("Spark ml", spark.ml(X, K, iterations) / iterations, each, None)


def first(pair):
    return pair[0]


def report(name, theirs, ours, difference):
    answer = "no start to compare from" if difference is None else f"means differ by {difference:.0e}"
    print(f"    {name:<12} {theirs * 1e3:8.1f} ms/iteration  {theirs / ours:6.1f} x  ({answer})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x columns x components")
    parser.add_argument("--iterations", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["RESIDMIX_NUM_THREADS"] = "2"
    try:
        spark = Spark()
    except ImportError:
        spark = None
    print(f"{arguments.iterations} iterations, 2 threads")
    for shape in arguments.shapes:
        compare(*map(int, shape.split("x")), arguments.iterations, spark)


if __name__ == "__main__":
    main()
