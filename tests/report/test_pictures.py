"""Pictures of reports: equal models give equal bytes, names stay text, the ink is the page's."""

import io
import re

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import residmix as rm
from residmix.plots.components import telling_plane
from residmix.report.pictures import _bars, figure_svg


def drawn(*rows):
    figure = Figure()
    _bars(figure.add_subplot(), list(rows))
    return figure_svg(figure)


def test_the_plane_is_the_one_that_separates_every_pair_of_components():
    means = np.array([[0, 0, 0, 0], [9, 0, 9, 0], [9, 5, 9, 0.0]])  # 0 and 2 alone leave two components on each other
    assert telling_plane(means, np.stack([np.eye(4)] * 3)) in {(0, 1), (1, 2)}
    assert telling_plane(means[:, :1], np.ones((3, 1, 1))) == (0, None)
    assert telling_plane(means[:1], np.eye(4)[None])[1] is not None


def test_equal_figures_give_equal_bytes():
    rows = [{"name": "a", "explained": 0.3}, {"name": "b", "explained": 0.6}]
    assert drawn(*rows) == drawn(*rows)
    assert drawn(*rows).startswith("<svg")


def test_names_are_text_whatever_they_hold():
    svg = drawn({"name": "<script>$\\frac{a}$", "explained": 0.3}, {"name": "年齢 سن", "explained": 0.1})
    assert "<script" not in svg
    assert "&lt;script&gt;$\\frac{a}$" in svg
    assert "年齢 سن" in svg


def test_the_ink_is_the_colour_of_the_page_and_identifiers_are_only_those_in_use():
    svg = drawn({"name": "a", "explained": 0.3})
    assert "currentColor" in svg
    assert "#1c2330" not in svg
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert set(re.findall(r' id="([^"]*)"', svg)) <= used


def test_nothing_in_a_picture_has_a_ground_or_an_ink_of_its_own(rng):
    table = pd.DataFrame(rng.normal(size=(200, 2)) * rng.choice([1.0, 5.0], 200)[:, None], columns=["a", "b"])
    table["site"] = rng.choice(["x", "y"], 200)
    figure = Figure()
    model = rm.ResidualMixture(2, formula="site", random_state=0).fit(table)
    rm.plot_components(model, table, groups="site", ax=figure.add_subplot())
    svg = figure_svg(figure)
    assert "site" in svg and "var(--card)" in svg
    for fixed in ("#1c2330", "#fefefe", "#000000", "fill: #ffffff", "stroke: #ffffff"):
        assert fixed not in svg
    assert len(re.findall(r"<text[^>]*>", svg)) == len(re.findall(r"<text[^>]*currentColor[^>]*>", svg))


def test_a_picture_that_is_laid_out_first_is_the_one_that_matplotlib_saves():
    def whole():
        figure = Figure(figsize=(4, 3), layout="constrained")
        ax = figure.add_subplot()
        ax.plot([1.0, 2.0, 1e6], [3.0, 1.0, 2.0], label="a long name in the legend")
        ax.set_xlabel("x")
        ax.legend()
        return figure

    def places(text):
        return re.findall(r'translate\(([^)]*)\)|<use [^>]*x="([^"]*)" y="([^"]*)"', text)

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "residmix"}):
        whole().savefig(buffer, format="svg")
    ours = [[round(float(x), 1) for x in " ".join(p).split()] for p in places(figure_svg(whole()))]
    theirs = [[round(float(x), 1) for x in " ".join(p).split()] for p in places(buffer.getvalue())]
    assert len(ours) > 10
    assert ours == theirs
