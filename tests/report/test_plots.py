"""Pictures: the plane is well chosen, and equal models give equal bytes."""

import numpy as np

from residmix.report.plots import _best_pair, explained_bars, figure_svg


def test_the_plane_is_the_one_that_separates_every_pair_of_components():
    means = np.array([[0, 0, 0, 0], [9, 0, 9, 0], [9, 5, 9, 0.0]])  # 0 and 2 alone leave two components on each other
    assert _best_pair(means, np.stack([np.eye(4)] * 3)) in {(0, 1), (1, 2)}
    assert _best_pair(means[:, :1], np.ones((3, 1, 1))) == (0, None)
    assert _best_pair(means[:1], np.eye(4)[None])[1] is not None


def test_equal_figures_give_equal_bytes():
    rows = [{"name": "a", "explained": 0.3}, {"name": "b", "explained": 0.6}]
    first, second = figure_svg(explained_bars(rows)), figure_svg(explained_bars(rows))
    assert first == second
    assert first.startswith("<svg")
