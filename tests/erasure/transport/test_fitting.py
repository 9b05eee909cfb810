import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix as rm
from residmix.erasure.transport import fitting
from residmix.erasure.transport.transport import STARTS, Asked


@pytest.mark.parametrize(("tail", "begun"), [(0.0, 1), (0.6, len(STARTS))])
def test_two_clusters_are_begun_again_only_where_held_out_rows_are_likelier_than_of_one(rng, monkeypatch, tail, begun):
    # one cluster at both sites: two aren't apart, and of a normal one no likelier; with a heavy tail they are
    x = rng.normal(size=(3000, 3)) * np.exp(tail * rng.normal(size=(3000, 1)))
    site = (np.arange(3000) % 2)[:, None] * 1.0
    asked = Asked(x + site, site, np.ones(3000), np.array([True]), None, False, 0)
    starts, fit = [], fitting.fit_transport

    def counted(asked, k, **options):
        starts.extend([options["start"]] if k == 2 else [])
        return fit(asked, k, **options)

    monkeypatch.setattr(fitting, "fit_transport", counted)
    search = fitting._Search(asked.only(np.arange(2000)), asked.only(np.arange(2000, 3000)))
    assert search.look(1, (1,)) and not search.look(2, (1, 2))
    assert starts == list(range(begun))


def turned(rng, n=900):
    """Rows at three sites that differ in correlation and spread alone, and the sites."""
    site, x = np.arange(n) % 3, rng.normal(size=(n, 2))
    x[:, 1] += np.array([0.0, 1.5, -1.5])[site] * x[:, 0]
    return x * np.array([1.0, 1.0, 2.0])[site, None], site


@pytest.mark.parametrize("coding", ["C(site)", "C(site, contr.sum)", "missing", "missing number"])
def test_levels_tell_groups_apart_in_any_contrast_and_with_missing_ones(rng, coding):
    x, site = turned(rng)
    metadata = pd.DataFrame({"site": np.array(["a", "b", "c"], dtype=object)[site]})
    formula, missing = (coding, "error") if "C" in coding else ("C(site)", "mean")
    if coding == "missing number":
        x, metadata, formula = x[site < 2], pd.DataFrame({"site": 1.0 * site[site < 2]}), "site"
    if missing == "mean":
        metadata.loc[:2, "site"] = None
    made = rm.Eraser(formula, method="spread", missing=missing).fit(x, metadata=metadata)
    y, known = made.transform(x, metadata=metadata), metadata["site"].notna()
    spread = [np.cov(y[known & (metadata["site"] == level)].T) for level in metadata["site"].dropna().unique()]
    for one in spread[1:]:
        assert_allclose(one, spread[0], atol=0.05 * np.abs(spread[0]).max())
    assert made.certificate_.passed
    assert_allclose(made.inverse_transform(y, metadata=metadata), x, atol=1e-8)


def test_weights_may_have_any_unit(rng):
    x, site = turned(rng)
    metadata, weight = pd.DataFrame({"site": site.astype(str)}), rng.integers(1, 4, len(x)).astype(float)
    fits = [rm.Eraser("site", method="spread").fit(x, metadata=metadata, sample_weight=unit * weight)
            for unit in (1.0, 1e-9, 1e9)]  # fmt: skip
    moved = [fit.transform(x, metadata=metadata) for fit in fits]
    assert_allclose(moved[1], moved[0], atol=1e-10)
    assert_allclose(moved[2], moved[0], atol=1e-10)


def test_a_feature_that_others_determine_fails_no_certificate_of_several_components(rng):
    site, cluster = np.arange(1000) % 2, np.arange(1000) % 4 < 2
    x = rng.normal(size=(1000, 2)) + 6.0 * cluster[:, None] + site[:, None]
    x = np.column_stack([x, x[:, 1], np.full(len(x), 7.0), x.sum(axis=1)])
    made = rm.Eraser("site", method="full", n_components=2).fit(x, metadata=pd.DataFrame({"site": site.astype(str)}))
    assert made.certificate_.passed
    assert len({row["feature"] for row in made.certificate_.uniform}) == 2


def test_an_anndata_object_is_named_as_such_also_where_metadata_are_wanted(rng):
    anndata = pytest.importorskip("anndata")
    x, site = turned(rng)
    made = rm.Eraser("site", method="spread").fit(x, metadata=pd.DataFrame({"site": site.astype(str)}))
    with pytest.raises(TypeError, match="from_anndata"):
        made.transform(anndata.AnnData(x))
