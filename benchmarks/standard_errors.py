"""Standard errors from the information matrix, beside those of a parametric bootstrap.

    python benchmarks/standard_errors.py [resamples] [rows]

prints, for some families, how far the ratio of the two lies from 1: the parameters' mean ratio, its spread, the largest
departure, and what chance makes of so many resamples, 1 / sqrt(2 B) a parameter.
"""

import sys
import warnings

import numpy as np

import residmix as rm


def rows(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    means, roots = np.array([[0.0, 0.0], [5.0, 1.0]]), np.array([[[1.0, 0.0], [0.4, 0.8]], [[1.2, 0.0], [-0.5, 1.0]]])
    label = (rng.random(n) < 0.4).astype(int)
    return np.asarray(means[label] + np.einsum("nij,nj->ni", roots[label], rng.normal(size=(n, 2))))


def ratios(X: np.ndarray, kind: str, resamples: int) -> np.ndarray:
    model = rm.GaussianMixture(2, covariance_type=kind, random_state=0, tol=1e-7).fit(X)
    errors = model.standard_errors_
    drawn = rm.bootstrap(model, X, resamples, kind="parametric").standard_errors
    found = [np.ravel(errors[name] / drawn[name]) for name in ("weights", "means", "covariances")]
    return np.concatenate(found)


def main(resamples: int, n: int) -> None:
    X = rows(n)
    print(f"{n:,} rows, {resamples:,} resamples: chance alone is {1 / np.sqrt(2 * resamples):.3f} a parameter")
    for kind in ("full", "tied", "diag"):
        found = ratios(X, kind, resamples)
        away = np.abs(found - 1)
        print(f"{kind:5} mean ratio {found.mean():.3f}, spread {found.std():.3f}, largest departure {away.max():.3f}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
