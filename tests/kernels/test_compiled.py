"""How many times loops are compiled: everybody's first fit waits for it."""

import numpy as np
import pandas as pd
import pytest
from numba.core.dispatcher import Dispatcher

from residmix import GaussianMixture, Residualizer
from residmix.kernels.loops import levels, orientation, products, rosenblatt, rowwise, tiles, twice

# A loop that reads rows is compiled for doubles and for floats, any other once.
MODULES = {orientation: 1, rosenblatt: 1, twice: 1, tiles: 1, products: 2, rowwise: 2, levels: 2}


def loops():
    """Return the loops that Python calls, with how many signatures they may have."""
    for module, most in MODULES.items():
        for value in vars(module).values():
            if isinstance(value, Dispatcher) and value.py_func.__module__ == module.__name__:
                yield value, most


def forms(X):
    """Return the same rows in arrays of all sorts."""
    locked = X.copy()
    locked.flags.writeable = False
    return [X, locked, np.asfortranarray(X), X[::-1][::-1], np.hstack([X, X])[:, : X.shape[1]], X.astype(np.float32)]


@pytest.mark.filterwarnings("ignore:Best performing:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("d", [3, 32])
def test_every_form_of_the_same_rows_meets_the_same_compiled_loops(d, monkeypatch):
    monkeypatch.setattr("residmix.kernels.pairs.SMALL", 0)
    rng = np.random.default_rng(0)
    X, n = rng.normal(size=(90, d)), 90
    metadata = pd.DataFrame({"site": rng.choice(list("abc"), n), "age": rng.normal(size=n)})
    for rows, weight in zip(forms(X), [None, *forms(rng.uniform(1, 2, size=(n, 1)))], strict=False):
        weight = None if weight is None else weight[:, 0]
        for family in ("full", "tied", "diag", "spherical"):
            model = GaussianMixture(2, covariance_type=family, random_state=0, max_iter=9, reg_covar=1e-2)
            model.fit(rows, sample_weight=weight).predict(rows)
        Residualizer("C(site) + age").fit(rows, metadata=metadata, sample_weight=weight).transform(
            rows, metadata=metadata
        )
        Residualizer("site", preserve="age", scale=True, shrinkage="eb").fit(
            rows, metadata=metadata, sample_weight=weight
        ).transform(rows, metadata=metadata)
    several = {loop.__name__: loop.signatures for loop, most in loops() if len(loop.signatures) > most}
    assert not several
    assert {"full_block", "scaled_block", "_subtract", "_rescale", "_add_levels"} <= {
        loop.__name__ for loop, _ in loops() if loop.signatures
    }
