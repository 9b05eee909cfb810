"""Aliased terms: what is given and what is told depends on spans only, and is right by a projection of one's own."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import residmix as rm
from residmix.errors import CollinearityWarning

pytestmark = pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")

FACTORS = ("site", "scanner", "subject", "room")


def table(seed=0, n=400, subjects=40):
    """Subjects lie in sites, which have their field strength; scanners and rooms cross them."""
    rng = np.random.default_rng(seed)
    subject = rng.integers(0, subjects, n)
    site, room = subject % 5, rng.integers(0, subjects, n)
    scanner = np.where(site < 3, site % 2, 2 + rng.integers(0, 2, n))
    level = rng.normal(size=subjects)
    return pd.DataFrame(
        {
            "site": [f"s{k}" for k in site],
            "scanner": [f"c{k}" for k in scanner],
            "subject": [f"p{k:04d}" for k in subject],
            "room": [f"r{k:04d}" for k in room],
            "tesla": np.where(site < 2, 3.0, 1.5),
            "born": level[subject],
            "age": rng.normal(size=n),
            "x": rng.normal(size=n) + site + 0.3 * subject % 7,
            "y": rng.normal(size=n) + level[subject],
        }
    )


def contributions(data, removed, preserved, X, weight=None):
    """Minimise norms of contributions in orthonormal bases of the terms, by singular value decompositions."""
    root = np.ones((len(data), 1)) if weight is None else np.sqrt(weight)[:, None]
    terms, bases = [*removed, *preserved], []
    for term in terms:
        columns = pd.get_dummies(data[term]).to_numpy(float) if term in FACTORS else data[[term]].to_numpy(float)
        centred = root * (columns - np.average(columns, axis=0, weights=root[:, 0] ** 2))
        left, values, _ = np.linalg.svd(centred, full_matrices=False)
        bases.append(left[:, values > 1e-8 * values[0]])
    ends = np.cumsum([0, *(basis.shape[1] for basis in bases)])
    where = [np.arange(*pair) for pair in pairwise(ends)]
    whole = np.hstack(bases)
    _, values, right = np.linalg.svd(whole, full_matrices=False)
    free = np.vstack([right[values <= 1e-8], np.linalg.svd(right)[2][len(right) :]]).T
    b = np.linalg.lstsq(whole, root * (X - np.average(X, axis=0, weights=root[:, 0] ** 2)), rcond=1e-8)[0]
    together = [np.concatenate(where[len(removed) :])] if len(preserved) > 1 else []
    for at in [*together, *reversed(where)]:
        left, values, right = np.linalg.svd(whole[:, at] @ free[at], full_matrices=False)
        right = np.linalg.svd(whole[:, at] @ free[at])[2] if len(right) < free.shape[1] else right
        rank = int((values > 1e-7).sum())
        b = b - free @ (right[:rank].T @ ((left[:, :rank].T @ whole[:, at] @ b[at]) / values[:rank, None]))
        free = free @ right[rank:].T
    return [basis @ b[at] / root for basis, at in zip(bases, where, strict=True)]


CASES = [
    (["site", "tesla"], []),
    (["tesla", "site"], []),
    (["site"], ["tesla"]),
    (["tesla"], ["site"]),
    (["site", "scanner"], ["age"]),
    (["scanner"], ["site", "tesla"]),
    (["scanner", "age"], ["tesla", "site"]),
    (["subject"], ["site", "born"]),
    (["born", "subject"], ["site"]),
    (["site", "room", "subject"], ["tesla"]),
    (["room", "born"], ["subject"]),
]


@pytest.mark.parametrize("subjects", [40, 230], ids=["columns", "absorbed"])  # above 200 levels there are no columns
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("removed", "preserved"), CASES)
def test_residuals_are_those_of_the_least_contributions(removed, preserved, weighted, subjects):
    data = table(n=700, subjects=subjects)
    X = data[["x", "y"]].to_numpy()
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(X)) if weighted else None
    parts = contributions(data, removed, preserved, X, weight)
    right = X - np.average(X, axis=0, weights=weight) - sum(parts[: len(removed)])
    model = rm.Residualizer(" + ".join(removed), preserve=" + ".join(preserved) or None)
    np.testing.assert_allclose(model.fit_transform(X, metadata=data, sample_weight=weight), right, atol=1e-9)
    # rows that came in parts have no second look; the first part shows every level
    first = ~data.duplicated("subject") | ~data.duplicated("room")
    parts = np.argsort(~first, kind="stable")
    streamed = rm.Residualizer(" + ".join(removed), preserve=" + ".join(preserved) or None)
    for piece in (parts[:550], parts[550:]):
        own = weight if weight is None else weight[piece]
        streamed.partial_fit(X[piece], metadata=data.iloc[piece], sample_weight=own)
    np.testing.assert_allclose(streamed.transform(X, metadata=data), right, atol=1e-7)


def test_a_feature_with_gaps_has_the_least_contributions_over_the_rows_that_it_has():
    data = table()
    X = data[["x", "y"]].to_numpy()
    X[::3, 1] = np.nan
    for removed, preserved in CASES:
        residual = rm.Residualizer(" + ".join(removed), preserve=" + ".join(preserved) or None).fit_transform(
            X, metadata=data
        )
        for j in range(2):
            have = ~np.isnan(X[:, j])
            x = X[have][:, [j]]
            parts = contributions(data[have], removed, preserved, x)
            right = x - x.mean(axis=0) - sum(parts[: len(removed)])
            np.testing.assert_allclose(residual[have][:, [j]], right, atol=1e-9)


# ---- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [0.0, 100.0, -1e6])
def test_the_table_has_what_r_estimates_and_nan_for_what_is_aliased(constant):
    # lm(x ~ site + tesla + age) in R gives NA for tesla and the other coefficients of lm(x ~ site + age)
    import statsmodels.formula.api as smf

    data = table().assign(x=lambda own: own["x"] + constant)
    right = smf.ols("x ~ site + age", data).fit()
    found = rm.Residualizer("site + tesla + age", features=["x"]).fit(data).tidy().set_index("term")
    assert found.loc["tesla", ["estimate", "std_error", "statistic", "p_value", "partial_r2"]].isna().all()
    rest = found.drop(index="tesla")
    for ours, theirs in (("estimate", right.params), ("std_error", right.bse), ("p_value", right.pvalues)):
        np.testing.assert_allclose(rest[ours], theirs[rest.index], rtol=1e-6, atol=1e-12)


def test_an_earlier_term_has_what_it_shares_and_its_table_is_that_of_the_term_alone(capsys):
    data = table()
    model = rm.Residualizer("tesla + site", features=["x"]).fit(data)
    found = model.tidy().set_index("term")
    # sites of 3 T can be told from each other, as those of 1.5 T can; the reference s0 is one of 3 T
    assert found.loc[["tesla", "site[T.s1]"], "estimate"].notna().all()
    assert found.loc[["site[T.s2]", "site[T.s3]", "site[T.s4]"]].iloc[:, 1:].isna().all(axis=None)
    slope = np.polyfit(data["tesla"], data["x"], 1)[0]
    np.testing.assert_allclose(found.loc["tesla", "estimate"], slope, rtol=1e-10)
    print(model.summary())
    assert "tesla        1  can't be separated from the other terms" in capsys.readouterr().out


def test_aliased_columns_are_named():
    with pytest.warns(CollinearityWarning, match=r"'tesla' is determined by 'site.* and tidy\(\) has NaN"):
        rm.Residualizer("site + tesla").fit(table()[["x"]], metadata=table())


def nested_share(data, whole, without):
    def rss(terms):
        columns = [pd.get_dummies(data[t]).to_numpy(float) if t in FACTORS else data[[t]].to_numpy() for t in terms]
        A = np.hstack([np.ones((len(data), 1)), *columns])
        x = data["x"].to_numpy()
        return ((x - A @ np.linalg.lstsq(A, x, rcond=1e-10)[0]) ** 2).sum(), np.linalg.matrix_rank(A)

    (small, rank), (large, other) = rss(whole), rss(without)
    return 1 - small / large, rank - other, small / (len(data) - rank)


@pytest.mark.parametrize("constant", [0.0, 100.0])
@pytest.mark.slow
def test_shares_and_their_tests_are_those_of_nested_fits(constant):
    from scipy.stats import f

    data = table().assign(x=lambda own: own["x"] + constant)
    terms = ["site", "scanner", "tesla", "age"]
    found = rm.association(data[["x"]], data, formula=" + ".join(terms), n_permutations=19).where(measure="r2")
    for term, share, p in zip(found["metadata"], found["in_sample"], found["in_sample_p"], strict=True):
        if term == "(all)":
            continue
        right, degrees, noise = nested_share(data, terms, [other for other in terms if other != term])
        np.testing.assert_allclose(share, right, atol=1e-9)
        if degrees == 0:
            assert np.isnan(p)
        else:
            gain = right / (1 - right) * noise * (len(data) - 1 - model_rank(data, terms))
            residual = len(data) - 1 - model_rank(data, terms)
            np.testing.assert_allclose(p, f.sf(gain / degrees / noise, degrees, residual), rtol=1e-6)


def model_rank(data, terms):
    columns = [pd.get_dummies(data[t]).to_numpy(float) if t in FACTORS else data[[t]].to_numpy() for t in terms]
    A = np.hstack(columns)
    return np.linalg.matrix_rank(A - A.mean(axis=0))


# ---- invariance ------------------------------------------------------------------------------------------------------

RENAMED = {"s0": "z", "s1": "m", "s2": "a", "s3": "y", "s4": "b"}


def told(model):
    """Return what a table says of terms whose names mean the same whatever the levels are called."""
    rows = model.tidy()
    rows = rows[rows["term"].isin(["tesla", "age", "born"])].set_index(["term", "feature"])
    return rows.sort_index()[["estimate", "std_error", "statistic", "p_value", "partial_r2"]]


@settings(max_examples=25, deadline=None)
@given(
    case=st.sampled_from(CASES[:7]),
    constant=st.floats(-1e5, 1e5),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_constants_units_names_and_the_order_of_rows_change_nothing(case, constant, unit, seed):
    removed, preserved = case
    data, rng = table(), np.random.default_rng(seed)
    X = data[["x", "y"]].to_numpy()
    settings_ = {"formula": " + ".join(removed), "preserve": " + ".join(preserved) or None, "on_unknown": "mean"}
    one = rm.Residualizer(**settings_).fit(X, metadata=data)
    order = rng.permutation(len(X))
    changed = data.assign(site=data["site"].map(RENAMED), tesla=data["tesla"] * unit, born=data["born"] * unit)
    two = rm.Residualizer(**settings_).fit(X[order] + constant, metadata=changed.iloc[order])
    new, new_changed = data.iloc[:20], changed.iloc[:20]
    np.testing.assert_allclose(
        one.transform(X[:20], metadata=new), two.transform(X[:20] + constant, metadata=new_changed), atol=1e-8
    )
    other, other_changed = new.assign(site="other", scanner="other"), new_changed.assign(site="other", scanner="other")
    np.testing.assert_allclose(
        one.transform(X[:20], metadata=other), two.transform(X[:20] + constant, metadata=other_changed), atol=1e-8
    )
    first, second = told(one), told(two)
    scale = np.where(first.index.get_level_values("term") == "age", 1.0, unit)
    second[["estimate", "std_error"]] = second[["estimate", "std_error"]].mul(scale, axis=0)
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-9)
