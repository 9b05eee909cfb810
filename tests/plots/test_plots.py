"""Pictures show the numbers that they are of: what is looked at is the data of what was drawn."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid

import residmix as rm
from residmix.data import penguins
from residmix.plots.style import COLOURS, MARKERS, name

FEATURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def mixture():
    return rm.ResidualMixture(3, formula="C(sex)", features=FEATURES, random_state=0).fit(penguins())


@pytest.fixture(scope="module")
def residualizer():
    return rm.Residualizer("C(island)", preserve="C(sex)", features=FEATURES).fit(penguins())


def test_every_plot_draws_on_the_axes_it_is_given_and_returns_it(mixture, residualizer):
    table = penguins()
    found = rm.association(table, formula="C(sex)", features=FEATURES, n_permutations=19)
    searched = {"covariance_type": ["VVV"], "n_components": [1], "bic": [1.0]}
    eraser = rm.Eraser("C(sex)", features=FEATURES, method="full", n_components=2).fit(table)
    calls = [
        (rm.plot_association, found),
        (rm.plot_certificate, eraser),
        (rm.plot_components, mixture),
        (rm.plot_convergence, mixture),
        (rm.plot_effect, residualizer),
        (rm.plot_levels, residualizer, table),
        (rm.plot_pit, mixture, table),
        (rm.plot_residuals_vs_metadata, residualizer, table),
        (rm.plot_selection, searched),
    ]
    assert {call[0].__name__ for call in calls} == {name for name in rm.__all__ if name.startswith("plot_")}
    for function, *arguments in calls:
        _, ax = plt.subplots()
        assert function(*arguments, ax=ax) is ax
        assert ax.get_xlabel()
        assert function(*arguments) is not ax


def test_effects_are_the_numbers_of_the_table():
    table = penguins()
    model = rm.Residualizer("sex + s(bill_length_mm, by=sex)", features=["body_mass_g", "bill_depth_mm"]).fit(table)
    ax = rm.plot_effect(model, feature="body_mass_g", at=[35.0, 40.0, 50.0])
    effect = model.effect("bill_length_mm", [35.0, 40.0, 50.0]).query("feature == 'body_mass_g'")
    for line, (level, own) in zip(ax.lines, effect.groupby("curve"), strict=True):
        assert line.get_label() == level
        np.testing.assert_allclose(line.get_ydata(), own["estimate"])
    low, high = (ax.collections[0].get_paths()[0].vertices[:, 1] for _ in range(2))
    assert np.isclose(low.min(), effect["lower"][effect["curve"] == "female"].min())
    assert np.isclose(high.max(), effect["upper"][effect["curve"] == "female"].max())
    levels = rm.plot_effect(rm.Residualizer("island", features=["body_mass_g"]).fit(table))
    assert [label.get_text() for label in levels.get_yticklabels()] == ["Biscoe", "Dream", "Torgersen"]
    with pytest.raises(ValueError, match="no curve and no factor"):
        rm.plot_effect(rm.Residualizer("bill_length_mm", features=["body_mass_g"]).fit(table))


def test_components_are_ellipses_at_two_standard_deviations_about_the_means(mixture):
    ax = rm.plot_components(mixture, penguins(), features=["bill_depth_mm", "body_mass_g"])
    plane = [1, 3]
    for k, ellipse in enumerate(ax.patches):
        np.testing.assert_allclose(ellipse.get_center(), mixture.means_[k, plane])
        turn = np.radians(ellipse.angle)
        axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shape = axes @ np.diag([ellipse.width / 4, ellipse.height / 4]) ** 2 @ axes.T
        np.testing.assert_allclose(shape, mixture.covariances_[k][np.ix_(plane, plane)], rtol=1e-6)
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    residual = mixture.residuals(penguins())[:, plane]
    np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], residual[np.lexsort(residual.T)])


def test_numbers_of_components_at_one_place_do_not_hide_each_other(rng):
    X = np.concatenate([rng.normal(0, scale, size=(2000, 2)) for scale in (1.0, 4.0, 16.0)])
    mixture = rm.GaussianMixture(3, random_state=0).fit(X)
    assert np.ptp(mixture.means_, axis=0).max() < 1  # all of them lie together
    ax = rm.plot_components(mixture, X)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_components_of_one_feature_are_densities_that_integrate_to_one(rng):
    X = np.concatenate([rng.normal(-3, 1, (300, 1)), rng.normal(3, 1, (300, 1))])
    ax = rm.plot_components(rm.GaussianMixture(2, random_state=0).fit(X), X)
    *parts, whole = [line.get_xydata() for line in ax.lines]
    assert trapezoid(whole[:, 1], whole[:, 0]) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(sum(part[:, 1] for part in parts), whole[:, 1])


def test_before_are_the_features_as_they_came(mixture):
    ax = rm.plot_components(mixture, penguins(), stage="before", features=["bill_depth_mm", "body_mass_g"])
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    np.testing.assert_allclose(np.sort(drawn[:, 1]), np.sort(penguins()["body_mass_g"]))
    assert len(ax.patches) == 0


def test_levels_show_mean_and_spread_before_and_after(residualizer):
    table = penguins()
    ax = rm.plot_levels(residualizer, table, "island", feature="body_mass_g")
    residual = residualizer.transform(table)[:, 3]
    mass = table["body_mass_g"] - table["body_mass_g"].mean()
    bars = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    for place, island in enumerate(np.unique(table["island"])):
        here = table["island"] == island
        for bar, values in zip(bars[2 * place : 2 * place + 2], (mass[here], residual[here]), strict=True):
            middle, spread = np.mean(values), np.std(values)
            np.testing.assert_allclose(bar, [middle - spread, middle + spread])


VARIANCES = {
    "full": lambda covariances: covariances[:, 1, 1],
    "diag": lambda covariances: covariances[:, 1],
    "spherical": lambda covariances: covariances,
    "EEE": lambda covariances: np.repeat(covariances[1, 1], 2),
}


@pytest.mark.parametrize("family", VARIANCES)
def test_components_are_as_wide_at_each_level_as_their_covariances_say(rng, family):
    site, cluster = np.repeat(["a", "b", "c"], 300), np.tile([0, 1], 450)
    wide = np.where(site == "b", 3.0, 1.0)[:, None]
    X = 20.0 * cluster[:, None] + wide * rng.normal(size=(900, 2)) * [1.0, 0.5]
    table = pd.DataFrame(X, columns=["x", "y"]).assign(site=site)
    options = {"formula": "C(site)", "covariance_by": "site", "covariance_type": family, "estimation": "joint"}
    model = rm.ResidualMixture(2, random_state=0, **options).fit(table)
    ax = rm.plot_levels(model, show="components", feature="y")
    drawn = np.array([line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 3])
    own = [VARIANCES[family](model.at(table[site == level][:1]).covariances_) for level in "abc"]
    np.testing.assert_allclose(drawn**2, np.transpose(own / VARIANCES[family](model.covariances_)), rtol=1e-9)
    np.testing.assert_allclose(drawn[:, 1] / drawn[:, 0], 3.0, rtol=0.2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.get_xlabel().startswith("y: spread")


def test_only_components_with_covariances_by_level_are_shown_by_level(mixture):
    with pytest.raises(ValueError, match="needs a ResidualMixture with covariance_by="):
        rm.plot_levels(mixture, show="components")


def test_legends_lie_on_nothing_that_is_drawn(residualizer, rng):
    site = rng.integers(3, size=900)
    x = rng.normal(size=(900, 2)) * (1.0 + site)[:, None] + 5000
    table = pd.DataFrame(x, columns=["x", "y"]).assign(site=site)
    eraser = rm.Eraser("C(site)", method="full", n_components=1).fit(table)
    for ax in (rm.plot_levels(residualizer, penguins(), "island"), rm.plot_certificate(eraser)):
        ax.figure.canvas.draw()
        assert not ax.get_legend().get_window_extent().overlaps(ax.patch.get_window_extent().shrunk(0.999, 0.999))
    bars = [line.get_xdata() for line in rm.plot_levels(eraser, table).lines if line.get_linewidth() > 2]
    assert np.abs(np.mean(bars, axis=1)).max() < 1  # about the mean also after an eraser, which keeps it


def test_distances_of_covariances_are_the_numbers_of_the_table(residualizer, rng):
    turn = np.array([[1.0, 0.9], [0.9, 1.0]])
    X = np.concatenate(
        [rng.multivariate_normal([0, 0], cov, 400, method="cholesky") for cov in (turn, np.eye(2), np.eye(2))]
    )
    site = pd.DataFrame({"site": np.repeat(["a", "b", "c"], 400)})
    model = rm.Residualizer("site", scale=True, covariance=True, check_leakage=False).fit(X, metadata=site)
    ax = rm.plot_levels(model, show="covariance")
    table = model.level_table("site")
    drawn = [line.get_xdata() for line in ax.lines]
    np.testing.assert_array_equal([pair for pair in drawn if len(pair) == 2], table[["covariance", "covariance_after"]])
    assert table["covariance"][0] > 0.1
    assert table["covariance_after"].max() < 0.05 * table["covariance"][0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a (400)", "b (400)", "c (400)"]
    assert "nats" in ax.get_xlabel()
    for call, told in (
        (lambda: rm.plot_levels(residualizer, show="covariance"), "needs a Residualizer with covariance="),
        (lambda: rm.plot_levels(model, column="scanner", show="covariance"), "are those of 'site', not of 'scanner'"),
        (lambda: rm.plot_levels(model), "needs the rows"),
        (lambda: rm.plot_levels(model, show="both"), "show must be"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_residuals_against_a_number_show_the_means_of_bins(rng):
    age = rng.uniform(20, 80, 600)
    table = pd.DataFrame({"x": 0.01 * (age - 50) ** 2 + 0.1 * rng.normal(size=600), "age": age})
    ax = rm.plot_residuals_vs_metadata(rm.Residualizer("age").fit(table), table)
    means = ax.lines[1].get_ydata()
    assert len(means) == 12
    assert means[0] > 1 > 0 > means[6]  # the bend that a straight line leaves
    flat = rm.plot_residuals_vs_metadata(rm.Residualizer("bs(age, df=5)").fit(table), table)
    assert np.abs(flat.lines[1].get_ydata()).max() < 0.2


def test_residuals_against_groups_are_boxes_with_their_medians(residualizer):
    table = penguins()
    ax = rm.plot_residuals_vs_metadata(residualizer, table, "island", feature="body_mass_g")
    residual = residualizer.transform(table)[:, 3]
    medians = {line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1}
    for island in np.unique(table["island"]):
        assert np.isclose(list(medians), np.median(residual[table["island"] == island])).any()


def test_the_certificates_lines_are_what_held_out_rows_say(rng):
    site = rng.integers(2, size=3000)
    x = rng.normal(size=(3000, 2)) * np.where(site == 1, 2.5, 1.0)[:, None]
    table = pd.DataFrame(x, columns=["x", "y"]).assign(site=np.where(site == 1, "B", "A"))
    eraser = rm.Eraser("C(site)", method="full", n_components=1).fit(table)
    ax = rm.plot_certificate(eraser)
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    full = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2]
    assert len(dashed) == len(full) == 2
    bound = max(row["bound"] for row in eraser.certificate_.levels)
    for before, after, row in zip(dashed, full, eraser.certificate_.levels, strict=True):
        assert np.abs(after.get_ydata()).max() < bound
        np.testing.assert_allclose(np.diff(before.get_ydata() + before.get_xdata()), row["before"], atol=1e-12)
        np.testing.assert_allclose(np.diff(after.get_ydata() + after.get_xdata()), row["after"], atol=1e-12)
    assert max(np.abs(line.get_ydata()).max() for line in dashed) > 1.5 * bound
    with pytest.raises(TypeError, match="has no certificate"):
        rm.plot_certificate(rm.Eraser("C(site)").fit(table))


def test_pit_counts_every_row_once_and_its_band_is_for_the_rows(rng):
    X = rng.normal(size=(4000, 1))
    ax = rm.plot_pit(rm.GaussianMixture(1).fit(X), X)
    heights = np.array([bar.get_height() for bar in ax.patches])
    assert heights.mean() == pytest.approx(1)
    (band,) = ax.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert np.mean((heights >= low) & (heights <= high)) >= 0.85
    assert high - 1 == pytest.approx(1.96 * np.sqrt(19 / 4000))
    narrow = rm.GaussianMixture(1).fit(X)
    wide = rm.plot_pit(narrow, 2 * X)
    ends = [bar.get_height() for bar in wide.patches]
    assert min(ends[0], ends[-1]) > 1.5  # too narrow: heaps at the ends


def test_convergence_shows_what_each_iteration_lacked(rng):
    X = np.concatenate([rng.normal(size=(300, 2)), rng.normal(1.5, 1, size=(300, 2))])
    model = rm.GaussianMixture(2, random_state=0, accelerate=False).fit(X)
    ax = rm.plot_convergence(model)
    values = np.asarray(model.lower_bounds_)
    short = values[-1] - values[:-1]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), short[short > 0])
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="no iterations"):
        rm.plot_convergence(rm.Residualizer("C(sex)", features=FEATURES).fit(penguins()))


def test_selection_rings_the_best_and_leaves_out_failed_fits():
    searched = {
        "covariance_type": ["VVV", "VVV", "EEE", "EEE"],
        "n_components": [1, 2, 1, 2],
        "bic": [310.0, 290.0, 312.0, np.inf],
        "icl": [310.0, 299.0, 312.0, np.inf],
    }
    ax = rm.plot_selection(searched)
    *lines, ring = ax.lines
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (2, 290.0)
    assert [line.get_xydata().tolist() for line in lines] == [[[1, 310.0], [2, 290.0]], [[1, 312.0]]]
    assert rm.plot_selection(searched, "icl").get_ylabel().startswith("ICL")
    with pytest.raises(ValueError, match="the columns are covariance_type"):
        rm.plot_selection(searched, "dic")


def test_association_shows_before_after_and_chance():
    table = penguins()
    found = rm.association(table, formula="C(sex)", features=FEATURES, n_permutations=19,
                           after=rm.Residualizer("C(sex)", features=FEATURES))  # fmt: skip
    ax = rm.plot_association(found)
    points = {round(float(line.get_xdata()[0]), 9) for line in ax.lines if line.get_marker() == "o"}
    for stage in ("before", "after"):
        value = found.where(stage=stage, measure="linear_probe")["held_out"][0]
        assert round(value, 9) in points
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["by chance", "before", "after"]


@pytest.mark.parametrize("own", [r"$\frac{a}{b$", "x" * 150, "<script>alert(1)</script>", "a\u202eb", "年齢", "$"])
def test_names_are_drawn_as_names(own, rng, tmp_path):
    n = 60
    table = pd.DataFrame({own: rng.normal(size=n), "b": rng.normal(size=n), "m": rng.choice(["$u$", own], n)})
    model = rm.Residualizer("m").fit(table)
    ax = rm.plot_levels(model, table, feature=own)
    with pytest.warns() if not own.isascii() and "\u202e" not in own else _nothing():
        ax.figure.savefig(tmp_path / "x.svg")
    assert "\u202e" not in ax.get_xlabel()
    assert len(name(own)) <= 32


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *raised):
        return False


def test_what_was_asked_for_wrongly_is_told_with_what_is_there(mixture, residualizer):
    table = penguins()
    for call, told in (
        (
            lambda: rm.plot_components(mixture, features=["bill_lenght_mm", "body_mass_g"]),
            "did you mean 'bill_length_mm'",
        ),
        (lambda: rm.plot_levels(residualizer, table, "iland"), "did you mean 'island'"),
        (lambda: rm.plot_levels(residualizer, table, feature="mass"), "unknown feature 'mass'"),
        (lambda: rm.plot_components(mixture, stage="later"), "stage must be"),
        (lambda: rm.plot_components(mixture, stage="before"), "needs X"),
        (lambda: rm.plot_selection(mixture), "no selection_"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    for call in (lambda: rm.plot_components(residualizer), lambda: rm.plot_pit(residualizer, table)):
        with pytest.raises(TypeError, match="pass a fitted mixture"):
            call()


def test_components_and_levels_differ_in_grey_and_in_shape():
    from matplotlib.colors import to_rgb

    assert len(set(MARKERS)) == len(COLOURS) == 8
    grey = sorted(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in COLOURS[:3])
    assert np.diff(grey).min() > 0.05


def test_arrays_with_metadata_apart_are_shown_too(rng):
    X, site = rng.normal(size=(90, 3)), rng.integers(0, 3, 90).astype(str)
    model = rm.Residualizer().fit(X, metadata=site)
    ax = rm.plot_levels(model, X, metadata=site)
    assert [label.get_text().split()[0] for label in ax.get_yticklabels()] == ["0", "1", "2"]
