"""The certificate: what chance gives, who fails by it, and what is chosen."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstwobign
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

import residmix as rm
from residmix.erasure.transport.certificate import ERROR
from residmix.erasure.transport.probes import probed


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_what_a_probe_reads_by_chance_has_the_spread_of_mann_and_whitney(rng, share):
    x, target = rng.normal(size=(3000, 3)), (rng.random(3000) < share).astype(int)
    first = rng.random(3000) < 0.5
    found = probed("linear", x, target, first)
    halves = [(int(target[half].sum()), int((1 - target[half]).sum())) for half in (first, ~first)]
    spread = np.sqrt(sum((m + n + 1) / (12 * m * n) for m, n in halves)) / 2
    assert found.error == pytest.approx(spread, rel=0.15)
    assert found.chance == pytest.approx(0.5, abs=0.01)


def test_what_a_probe_reads_of_numbers_by_chance_is_below_zero_and_of_a_line_nearly_all(rng):
    x, first = rng.normal(size=(2000, 3)), rng.random(2000) < 0.5
    noise, line = (probed(kind, x, y, first) for kind, y in (("nonlinear", rng.normal(size=2000)), ("linear", x[:, 0])))
    assert noise.chance < 0
    assert abs(noise.score - noise.chance) < 5 * noise.error
    assert line.score > 0.99


@pytest.mark.slow
def test_a_true_model_passes_twenty_certificates_and_one_that_lacks_a_site_effect_none():
    sites = np.array(["A", "B", "C"])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        site = rng.integers(3, size=2500)
        factors, shift = np.eye(2) + 0.3 * rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2))
        x = np.einsum("nj,njk->nk", rng.normal(size=(2500, 2)), factors[site]) + shift[site]
        metadata = pd.DataFrame({"site": sites[site]})
        true = rm.Eraser("C(site)", method="spread", random_state=seed).fit(x, metadata=metadata).certificate_
        assert true.passed, true
        bent = np.column_stack([x, np.where(site == 0, 1.0, -1.0) * (x[:, 0] ** 2 - (x[:, 0] ** 2).mean())])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = rm.Eraser("C(site)", method="spread", random_state=seed).fit(bent, metadata=metadata).certificate_
        assert not small.passed


@pytest.mark.slow
def test_a_heavy_tailed_site_has_more_components_but_the_same_clusters_which_stay():
    def drawn(seed, n=5000):
        rng = np.random.default_rng(seed)
        site, kind = rng.integers(2, size=n), rng.random(n)
        kind = kind < np.where(site == 0, 0.7, 0.3)
        x = rng.normal(size=(n, 3))
        x[:, 0] += np.where(kind, 2.5, -2.5)
        x[:, 1] = np.where(site == 0, x[:, 1], np.sign(x[:, 1]) * np.abs(x[:, 1]) ** 1.8)
        x[:, 2] += np.where(site == 0, 0.6, -0.6) * x[:, 0] + site
        return x @ np.array([[1, 0.3, 0.2], [-0.2, 1, 0.5], [0.4, 0, 1]]), pd.DataFrame({"site": site * 1.0}), kind

    x, metadata, _ = drawn(0)
    eraser = rm.Eraser("C(site)", method="component").fit(x, metadata=metadata)
    made = eraser.certificate_
    assert made.passed, made
    assert made.n_components > made.n_clusters == 2
    assert any(row["covariances"] == "tied" for row in made.candidates)
    later, metadata_later, kind = drawn(1)
    moved = eraser.transform(later, metadata=metadata_later)
    site = metadata_later["site"].to_numpy()

    def reads(features, what):
        forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0).fit(features[:2500], what[:2500])
        return roc_auc_score(what[2500:], forest.predict_proba(features[2500:])[:, 1])

    assert reads(later, kind) - reads(moved, kind) < 0.005
    assert abs(reads(moved, site) - roc_auc_score(site, ~kind)) < 0.03
    assert np.abs(eraser.inverse_transform(moved, metadata=metadata_later) - later).max() < 1e-8


@pytest.mark.slow
def test_the_bounds_allow_for_the_rows_of_the_fit_as_smirnov_does_for_a_second_sample(rng):
    site = rng.integers(3, size=2500)
    metadata = pd.DataFrame({"site": np.array(["A", "B", "C"])[site]})
    made = rm.Eraser("C(site)", method="spread", random_state=0).fit(rng.normal(size=(2500, 2)), metadata=metadata)
    found = made.certificate_
    fitted = 2500 - found.n_rows
    errors = [
        kstwobign.sf(row["bound"] * np.sqrt(row["rows"] * fitted / (fitted + found.n_rows))) for row in found.levels
    ]
    # one certificate in a hundred fails by chance, over three sites and two features
    np.testing.assert_allclose(errors, ERROR / 6, rtol=0.4)
