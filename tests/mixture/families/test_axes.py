"""Volumes of components that have a shape, or a form, in common."""

import numpy as np
import pytest

from residmix.mixture.families.axes import axis_variances
from residmix.mixture.families.orientation import common_form


def halves(W, n, rounds):
    """Volumes and form, each best for the other one, in turns (Celeux & Govaert 1995, section 4.1.2)."""
    d, size = W.shape[1], np.ones(len(n))
    for _ in range(rounds):
        C = np.tensordot(n / size, W, 1)
        C /= np.exp(np.linalg.slogdet(C)[1] / d)
        size = np.trace(np.linalg.solve(C, W), axis1=1, axis2=2) / d
    return size[:, None, None] * C


def within(spread, condition, seed, K=6, d=4):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(K, d, d + 1)) * np.geomspace(1, condition, d)[:, None]
    sizes = np.exp(rng.normal(size=K) * spread)
    return roots @ roots.swapaxes(1, 2) * sizes[:, None, None], rng.uniform(5, 500, K)


@pytest.mark.parametrize(("spread", "condition"), [(0.5, 1.0), (5.0, 1.0), (0.5, 1e5), (10.0, 1e3)])
@pytest.mark.parametrize("seed", range(5))
def test_volumes_and_form_are_where_both_halves_rest(spread, condition, seed):
    W, n = within(spread, condition, seed)
    found = common_form(W, n, None)
    np.testing.assert_allclose(found, halves(W, n, 3000), rtol=1e-8, atol=0)
    axes = np.diagonal(W, axis1=1, axis2=2)
    ordinary = halves(axes[:, :, None] * np.eye(axes.shape[1]), n, 3000)
    np.testing.assert_allclose(
        axis_variances(axes, n, "V", "E"), np.diagonal(ordinary, axis1=1, axis2=2), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("seed", range(5))
def test_where_the_search_begins_makes_no_difference(seed):
    W, n = within(1.0, 10.0, seed)
    far = np.exp(8 * np.random.default_rng(seed + 99).normal(size=len(n)))[:, None, None] * np.eye(W.shape[1])
    np.testing.assert_allclose(common_form(W, n, far), common_form(W, n, None), rtol=1e-11)


def test_a_component_without_spread_has_no_volume():
    W, n = within(1.0, 10.0, 0)
    W[2] = 0.0
    with np.errstate(all="ignore"):
        assert not np.isfinite(common_form(W, n, None)).all()


def test_components_on_a_line_each_leave_nothing_to_choose():
    W = np.eye(3)[:, :, None] * np.eye(3)[:, None, :]  # any volumes are as good
    found = common_form(W, np.ones(3), None)
    np.testing.assert_allclose(found, np.broadcast_to(np.eye(3) / 3, (3, 3, 3)), rtol=1e-12)
