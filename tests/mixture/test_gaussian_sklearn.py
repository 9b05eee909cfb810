"""scikit-learn's own tests of its GaussianMixture, run on ours.

The tests are taken from the installed scikit-learn and see our class under its name. Left out are those that look at
private helpers instead of behaviour, or that stand for something we decided otherwise; each with its reason.
"""

import functools
import importlib

import numpy as np
import pytest
import sklearn
from sklearn.utils.estimator_checks import parametrize_with_checks

from residmix import GaussianMixture

LEFT_OUT = {
    # they test private functions of scikit-learn, not the estimator
    "test_suffstat_sk_full",
    "test_suffstat_sk_tied",
    "test_suffstat_sk_diag",
    "test_gaussian_suffstat_sk_spherical",
    "test_compute_log_det_cholesky",
    "test_gaussian_mixture_log_probabilities",
    # they call the private methods _set_parameters and _initialize, or replace a private function
    "test_gaussian_mixture_precisions_init",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters",
    # arrays of other libraries (torch, CuPy) are not this estimator's business
    "test_gaussian_mixture_array_api_compliance",
    "test_gaussian_mixture_raises_where_array_api_not_implemented",
    # expects equal iteration counts from scikit-learn's k-means start; our default start is another
    "test_gaussian_mixture_precisions_init_diag",
}

if sklearn.__version__ < "1.7":
    # asks for the words of an error, which scikit-learn has changed since, and ours are the new ones
    LEFT_OUT.add("test_regularisation")

# they expect that a few iterations from k-means are too few; from our default start they may be enough
FROM_KMEANS = {"test_warm_start"}

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def global_dtype():
    return np.float64


@pytest.fixture
def global_random_seed():
    return 42


def _from_kmeans(module, test):
    """Return a test that begins fits as scikit-learn does."""

    @functools.wraps(test)
    def begun(*arguments, **named):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "GaussianMixture", functools.partial(GaussianMixture, init_params="kmeans"))
            test(*arguments, **named)

    return begun


for _module in ("test_gaussian_mixture", "test_mixture"):
    _theirs = importlib.import_module(f"sklearn.mixture.tests.{_module}")
    _theirs.GaussianMixture = GaussianMixture
    for _name, _test in list(vars(_theirs).items()):
        if _name.startswith("test_") and _name not in LEFT_OUT and callable(_test):
            globals()[_name] = _from_kmeans(_theirs, _test) if _name in FROM_KMEANS else _test


@parametrize_with_checks([GaussianMixture()])
def test_estimator_checks(estimator, check):
    check(estimator)
