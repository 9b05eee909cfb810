"""Settings for all tests."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # the workers already fill the processors; nested BLAS pools would fight over them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("residmix", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("residmix")


@pytest.fixture
def rng():
    return np.random.default_rng(20260)
