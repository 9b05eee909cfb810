"""Processes that are forked after a fit, or while one runs, fit to the same bits; joblib's do, too."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

DATA = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from multiprocessing import get_context
import numpy as np
import residmix as rm
from residmix.rows.threads import one_blas_thread
rng = np.random.default_rng(0)
X = rng.normal(size=(20000, 4)) + 3 * rng.integers(0, 2, (20000, 1))
M = rng.normal(size=(20000, 2))

def fits(_=None):
    mixture = rm.GaussianMixture(2, max_iter=5, random_state=0).fit(X)
    both = rm.ResidualMixture(2, max_iter=5, random_state=0).fit(X, metadata=M)
    eraser = rm.Eraser().fit(X, metadata=M)
    return b"".join(a.tobytes() for a in (mixture.means_, both.coef_, both.means_, eraser.transform(X[:9])))
"""

AFTER = """
whole = fits()
with get_context("fork").Pool(2) as pool:
    assert pool.map(fits, range(3)) == [whole] * 3
print("right")
"""

DURING = """
def threads_of_blas():
    import threadpoolctl
    return [each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]

def child(tell):
    right = fits() == whole
    with one_blas_thread():  # counts who is inside, and those were its parent's threads
        limited = threads_of_blas()
    tell.send((right, limited, threads_of_blas()))

whole, before, stop = fits(), threads_of_blas(), threading.Event()
inside = threading.Event()

def busy():
    with one_blas_thread():  # as a fit is for as long as it lasts
        inside.set()
        while not stop.is_set():
            fits()

thread = threading.Thread(target=busy)
thread.start()
inside.wait()
context, found = get_context("fork"), []
for _ in range(20):  # a thread of BLAS more, and one of them waits for ever
    listen, tell = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(tell,))
    process.start()
    found.append(listen.recv())
    process.join()
stop.set()
thread.join()
for right, limited, threads in found:
    assert right and set(limited) == {1} and threads == before, (right, limited, threads, before)
print("right")
"""

JOBLIB = """
from joblib import Parallel, delayed

def coefficients(X, M):
    import residmix
    return residmix.Residualizer().fit(X, metadata=M).coef_.tobytes()

whole = coefficients(X, M)
for backend in ("loky", "multiprocessing"):
    assert Parallel(n_jobs=2, backend=backend)(delayed(coefficients)(X, M) for _ in range(3)) == [whole] * 3, backend
print("right")
"""


def run(script, *arguments):
    """Run a script in a process of its own, with two threads; one that waits for ever is ended after ten minutes."""
    environment = {**os.environ, "RESIDMIX_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("script", [AFTER, DURING, JOBLIB], ids=["after a fit", "while a fit runs", "joblib"])
@pytest.mark.slow
def test_processes_that_are_forked_fit_to_the_same_bits(script):
    done = run(DATA + script)
    assert done.stdout == "right\n", done.stderr
