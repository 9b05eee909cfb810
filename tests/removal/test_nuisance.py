"""Residualizer as a citizen of scikit-learn."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from residmix import Residualizer


@pytest.mark.filterwarnings("ignore:there is no metadata, so only the means")
@parametrize_with_checks([Residualizer()])
def test_it_passes_scikit_learns_own_checks(estimator, check):
    check(estimator)
