"""Mixtures by group: what the average group is, and clusters that keep their rows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

import residmix as rm
from residmix.erasure.transport.groups import _Told


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    site, kind = rng.integers(2, size=2000), rng.integers(2, size=2000)
    x = rng.normal(size=(2000, 2)) + 4.0 * kind[:, None] + site[:, None]
    eraser = rm.Eraser("C(site)", method="full", n_components=2, random_state=0)
    return eraser.fit(x, metadata=pd.DataFrame({"site": site}))


def test_the_average_group_counts_a_component_by_its_rows_so_one_that_a_group_lacks_is_where_the_others_have_it(fitted):
    groups, origin = fitted.transport_.by_group, fitted.transport_.reference
    shift = groups.shift.copy()
    shift[1, 0] += 1000.0  # no row of the second group says where this one is
    mass = np.array([[300.0, 700.0], [0.0, 1000.0]])
    law = replace(groups, shift=shift).with_usual(mass, origin).average(origin[None])
    own = replace(groups, shift=shift).at(groups.patterns)
    np.testing.assert_allclose(law.means[0, 0], own.means[0, 0], atol=1e-8)
    np.testing.assert_allclose(law.means[0, 1], (0.7 * own.means[0, 1] + own.means[1, 1]) / 1.7)
    np.testing.assert_allclose(np.exp(law.log_weights[0]), [0.15, 0.85])
    first, second = (groups.factors[g, 1] @ groups.factors[g, 1].T for g in (0, 1))
    np.testing.assert_allclose(law.factors[0, 1] @ law.factors[0, 1].T, (0.7 * first + second) / 1.7)


def test_told_clusters_keep_their_probabilities_and_divide_them_by_the_likelihood_within(rng):
    joint, told = rng.normal(size=(9, 5)), rng.dirichlet(np.ones(2), 9)
    clusters = np.array([0, 1, 0, 1, 1])
    share, likely = _Told(told, clusters).within(joint)
    whole = np.stack([np.exp(joint[:, clusters == c]).sum(axis=1) for c in (0, 1)], axis=1)
    np.testing.assert_allclose(share, told[:, clusters] * np.exp(joint) / whole[:, clusters])
    np.testing.assert_allclose(likely, (told * np.log(whole)).sum(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 119])
def test_skewed_clusters_of_crossed_factors_are_matched_and_their_proportions_are_all_that_is_left(seed):
    """Undivided mixtures are likelier here, by a little, and have another cluster at each scanner."""

    def drawn(rng, n=8000):
        scanner, coil = rng.integers(2, size=n), rng.integers(2, size=n)
        cluster = rng.random(n) < 0.6 - 0.3 * scanner + 0.1 * coil
        e = rng.normal(size=(n, 2))
        wide = np.where(scanner == 0, e[:, 0], np.expm1(0.4 * e[:, 0]) / 0.4)
        x = np.column_stack([wide, np.where(scanner == 0, 1, 0.4) * e[:, 1] + np.where(scanner == 0, 1, -1) * wide])
        place = np.where(cluster, 1.0, -1.0)[:, None] * np.array([3.0, 1.5])
        x = x * np.where(coil == 0, 1, 1.3)[:, None] + place + scanner[:, None] * np.array([0.8, -0.5])
        return x, pd.DataFrame({"scanner": scanner, "coil": coil}), scanner, cluster, e + place

    def reads(features, what):
        half = len(features) // 2
        forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0).fit(features[:half], what[:half])
        return roc_auc_score(what[half:], forest.predict_proba(features[half:])[:, 1])

    rng = np.random.default_rng(seed)
    x, metadata = drawn(rng)[:2]
    later, metadata_later, scanner, cluster, alike = drawn(rng)
    eraser = rm.Eraser("C(scanner) + C(coil)", method="component", random_state=0).fit(x, metadata=metadata)
    moved = eraser.transform(later, metadata=metadata_later)
    assert eraser.certificate_.n_clusters == 2
    assert reads(later, scanner) > 0.9
    assert abs(reads(moved, scanner) - reads(alike, scanner)) < 0.02
    assert reads(alike, cluster) - reads(moved, cluster) < 0.005
