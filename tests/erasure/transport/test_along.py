"""Spreads along numbers: found where rows are, and at the edge beyond."""

import numpy as np
from numpy.testing import assert_allclose

from residmix.erasure.transport.along import along


def test_log_spreads_are_found_in_any_unit_and_beyond_the_rows_they_are_those_of_the_edge(rng):
    age = np.append(rng.uniform(20, 80, 39_998), [20.0, 80.0])
    slope = np.array([0.02, -0.01])
    away = rng.normal(size=(40_000, 1, 2)) * np.exp(slope * age[:, None] - 3)[:, None]
    for unit in (1.0, 1e3):
        found = along(away, np.ones((40_000, 1)), unit * age[:, None], np.array([0]))
        # the logarithm of the size of a normal number has the variance pi^2 / 8
        error = np.pi / np.sqrt(8 * 40_000) / age.std()
        assert_allclose(found.slope[0, 0] * unit, slope, atol=4 * error)
        assert_allclose(found.origin, unit * age.mean())
        ratio = found.at(unit * np.array([[20.0], [80.0], [-50.0], [1000.0]]))[:, 0]
        assert_allclose(np.log(ratio[1] / ratio[0]), 60 * unit * found.slope[0, 0])
        assert_allclose(ratio[2:], ratio[:2], rtol=1e-12)
