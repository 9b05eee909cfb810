"""Every compiled loop against its twin in numpy, and the twins where nothing can be compiled."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose

from residmix import errors
from residmix.errors import ResidmixWarning
from residmix.kernels.pairs import PAIRS, Pair, small

NONE = np.empty((0, 0))
NO_WEIGHT = np.empty(0)


def mixtures(rng):
    """Yield rows of every sort: ordinary, none at all, NaN, out of reach; weights and priors with and without."""
    for n, d, K in [
        (1, 1, 1),
        (0, 3, 2),
        (50, 3, 2),
        (211, 4, 3),
        (333, 5, 2),
        (150, 13, 3),
        (90, 30, 4),
        (120, 65, 2),
    ]:
        rows, means = rng.normal(size=(n, d)), rng.normal(size=(K, d))
        factors = np.triu(rng.normal(size=(K, d, d))) / d + np.eye(d)
        constant = rng.normal(size=K)
        for weight, prior in [(NO_WEIGHT, NONE), (rng.integers(0, 3, n).astype(float), rng.normal(size=(n, K)))]:
            if n > 20:
                rows = rows.copy()
                rows[3], rows[7], rows[11, 0] = 1e200, -1e160, np.nan
            yield rows, means, factors, constant, prior, weight


def full_joint(rng):
    return [(r, m, f, c, p) for r, m, f, c, p, _ in mixtures(rng)]


def full_sums(rng):
    for rows, means, factors, constant, prior, weight in mixtures(rng):
        d = rows.shape[1]
        rows = np.where(np.isnan(rows), 0.0, rows)  # what is sent to sums has been looked at
        yield rows, d, means, factors, constant, prior, weight
        if not prior.size and len(means) == 4:
            yield rows, d, means, factors, constant, prior, weight, True, 2
        extra, centre = rng.normal(size=(len(rows), 2)), rng.normal(size=(len(means), 2))
        yield np.hstack([extra, rows]), d, np.hstack([centre, means]), factors, constant, prior, weight


def single_sums(rng):
    for n, d, K in [(1, 1, 1), (0, 3, 2), (211, 4, 3), (333, 9, 2), (700, 13, 3), (90, 30, 4), (120, 65, 2)]:
        rows, means = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(K, d))
        means[-1] += 30.0  # of few rows
        factors = np.triu(rng.normal(size=(K, d, d))) / d + np.eye(d)
        for weight, prior in [(NO_WEIGHT, NONE), (rng.integers(0, 3, n).astype(float), rng.normal(size=(n, K)))]:
            for offset in (0.0, 4096.0):
                moved = np.float32(offset) + rows
                yield moved, means + offset, factors, rng.normal(size=K), prior, weight


def full_parameters(rng):
    """Yield moments in order, then a dead component, a mean that jumps too far, a singular and an infinite scatter."""
    for K, d in [(1, 1), (3, 4), (2, 13)]:
        rows = rng.normal(size=(K, 4 * d, d))
        scatter, shift = np.einsum("knd,kne->kde", rows, rows), rows.sum(axis=1)
        given = np.full(K, 4.0 * d), shift, scatter, rng.normal(size=(K, d))
        yield *given, 1e-8, 1e13, 1e-6
        yield np.r_[np.full(K - 1, 4.0 * d), 1e-9], *given[1:], 1e-8, 1e13, 0.0
        yield given[0], 1e8 * shift, scatter + 1e16 * np.einsum("kd,ke->kde", shift, shift), given[3], 1e-8, 1e13, 0.0
        yield *given[:2], np.zeros((K, d, d)), given[3], 1e-8, 1e13, 0.0
        yield *given[:2], np.full((K, d, d), np.inf), given[3], 1e-8, 1e13, 0.0


def vector_of_full(rng):
    for K, d in [(1, 1), (3, 4)]:
        factors = np.triu(rng.normal(size=(K, d, d)))
        factors[:, range(d), range(d)] = rng.uniform(0.1, 2.0, (K, d))
        yield np.r_[0.0, rng.dirichlet(np.ones(K))[1:]], rng.normal(size=(K, d)), factors, rng.uniform(1, 9, d)


def full_of_vector(rng):
    for K, d in [(1, 1), (3, 4)]:
        vector = rng.normal(size=K + K * d + K * d * (d + 1) // 2)
        yield vector, rng.uniform(1, 9, d), K, 300.0
        vector[K + K * d] = -1000.0  # cut off
        yield vector, rng.uniform(1, 9, d), K, 9.0


def scaled_joint(rng):
    for rows, means, factors, constant, prior, _ in mixtures(rng):
        scales = np.abs(factors[:, 0]) + 0.1
        yield rows, means, scales, constant, prior
        yield rows, means, scales[:, :1], constant, prior


def scaled_sums(rng):
    for rows, means, factors, *rest in mixtures(rng):
        rows, scales = np.where(np.isnan(rows), 0.0, rows), np.abs(factors[:, 0]) + 0.1
        for of in (scales, scales[:, :1]):
            yield rows, means, of, *rest
            if not rest[1].size and len(means) == 4:
                yield rows, means, of, *rest, True, 2
        # more rows than a tile has, and a component that most tiles have nothing of
        many = np.concatenate([rows] * (1 + 2000 // max(len(rows), 1)))[:2000] if not rest[1].size else rows
        far = np.vstack([means[:-1], means[-1:] + 60.0])
        for of in (scales, scales[:, :1]):
            yield many, far, of, *rest


def tied_gram(rng):
    for rows, means, factors, *rest in mixtures(rng):
        yield np.where(np.isnan(rows), 0.0, rows), means.mean(axis=0), factors[0], means, *rest


def squared_distances(rng):
    for n, d, K in [(1, 1, 1), (100, 3, 4), (96, 5, 2), (500, 2, 9)]:
        yield rng.normal(size=(d, n)), rng.normal(size=(K, d))


def centred_products(rng):
    for n, d, q in [(1, 1, 0), (0, 3, 1), (65, 32, 3), (200, 70, 5), (2100, 40, 1)]:
        for dtype in (np.float64, np.float32):
            X, A = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(n, q))
            for weight in (NO_WEIGHT, rng.uniform(0, 2, n)):
                yield X, A, rng.normal(size=d), rng.normal(size=q), weight


def subtract_rows(rng):
    for n, d, p in [(50, 1, 0), (0, 3, 2), (50, 255, 3), (50, 600, 9), (50, 4, 4), (50, 4, 16)]:
        for dtype in (np.float64, np.float32):
            X, A = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(n, p + 1))
            about = [rng.normal(size=size) for size in (d, p, (p, d), d)]
            for sign, levels in [(-1.0, 0), (1.0, 5)]:
                codes = rng.integers(-1, levels, n).astype(np.int32) if levels else np.empty(0, np.int32)
                yield X, A, *about, sign, rng.normal(size=(levels + 1, d)), codes, np.empty_like(X)


def level_products(rng):
    for n, d, q, K in [(0, 3, 1, 2), (50, 3, 0, 4), (200, 520, 3, 4), (3000, 41, 16, 2), (60, 33, 17, 7)]:
        own = rng.integers(0, K, n)
        own[own == 1] = 0  # so that a level has no rows
        order, starts = np.argsort(own, kind="stable"), np.searchsorted(np.sort(own), np.arange(K + 1))
        for dtype in (np.float64, np.float32):
            X, A = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(n, q))
            for weight in (NO_WEIGHT, rng.uniform(0, 2, n)):
                yield X, A, order, starts, rng.normal(size=(K, d)), rng.normal(size=(K, q)), weight


def rescale_rows(rng):
    for n, d, k in [(0, 3, 1), (50, 1, 0), (50, 8, 1), (50, 403, 3), (50, 4, 16)]:
        codes, A = rng.integers(0, 5, n), rng.normal(size=(n, k + 2))
        about = rng.normal(size=k), rng.normal(size=(k, d))
        tables = rng.normal(size=d), rng.normal(size=(5, d)), rng.uniform(0.5, 2, (5, d)), codes
        for dtype, back in [(np.float64, False), (np.float32, False), (np.float64, True)]:
            X = rng.normal(size=(n, d)).astype(dtype)
            for base in (rng.normal(size=(1, d)), rng.normal(size=(max(n, 2), d))[:n]):
                yield X, A, 2, *about, base, *tables, back, np.empty_like(X)


def add_effects(rng):
    return [(rng.normal(size=(n, 3)), rng.normal(size=(6, 3)), rng.integers(-1, 5, n), -1.0) for n in (0, 40)]


def locate_levels(rng):
    return [(rng.integers(0, 50, n), 50) for n in (0, 1, 30, 400)]


def sum_levels(rng):
    for n, dtype in [(0, np.float64), (60, np.float64), (60, np.float32)]:
        for weight in (NO_WEIGHT, rng.uniform(0, 2, n)):
            values, codes = rng.normal(size=(n, 3)).astype(dtype), rng.integers(0, 4, n)
            yield values, rng.normal(size=3), codes, weight, np.zeros((4, 3)), np.zeros(3)


def residual_twice(rng):
    for n, d, q in [(1, 1, 0), (40, 3, 2)]:
        X = 1e8 * rng.normal(size=(n, d))
        X[n // 2, 0] = np.nan
        two = [(rng.normal(size=size), 1e-17 * rng.normal(size=size)) for size in ((q, d), (d,))]
        yield X, rng.normal(size=(n, q)), rng.normal(size=d), rng.normal(size=q), *two


def products_twice(rng):
    for n, d, q in [(1, 1, 0), (40, 3, 2)]:
        residual = rng.normal(size=(n, d)), 1e-17 * rng.normal(size=(n, d))
        for weight in (None, rng.uniform(size=n)):
            yield rng.normal(size=(n, q)), rng.normal(size=q), residual, weight


def turn_axes(rng):
    for K, d in [(1, 1), (3, 4)]:
        W = rng.normal(size=(K, d, 2 * d))
        yield W @ W.transpose(0, 2, 1), np.eye(d), rng.uniform(1, 2, (K, d))


def laws(rng):
    """Yield rows far and near, and a mixture for each, with groups that have no rows."""
    for n, d, K, G in [(0, 2, 2, 1), (1, 1, 1, 1), (40, 3, 2, 3), (60, 5, 4, 7)]:
        x = 3.0 * rng.normal(size=(n, d))
        if n > 20:
            x[3], x[4], x[5, 0] = 1e6, -1e3, 40.0
        factors = np.tril(rng.normal(size=(G, K, d, d))) / d
        factors[..., range(d), range(d)] = rng.uniform(0.5, 1.5, (G, K, d))
        log_weights = np.log(rng.dirichlet(np.ones(K), n))
        if n > 20 and K > 1:
            log_weights[7, 0] = -np.inf  # a component that has no weight
        spread = np.exp(0.2 * rng.normal(size=(n, K, d)))
        yield x, log_weights, rng.normal(size=(n, K, d)), factors, rng.integers(0, G, n), spread


def scores_of_rows(rng):
    return [*laws(rng)]


def rows_of_scores(rng):
    for x, *law in laws(rng):
        x[4:6] /= 1e3  # of other scores than these rows are not known to a digit
        yield np.clip(x, -6.0, 6.0), *law


def split_nodes(rng):
    for n, d, width, min_leaf in [(1, 1, 1, 1), (60, 3, 1, 5), (211, 4, 3, 1), (300, 9, 20, 5)]:
        codes = rng.integers(0, 64, (d, n)).astype(np.uint8)
        codes[-1] = rng.integers(0, 2, n) * 63
        if d > 3:
            codes[0] = 7  # of no use, and not counted as tried
        slots = rng.integers(0, width, n)
        values = np.ones(n, dtype=np.int64) if width > 1 else rng.integers(-(1 << 20), 1 << 20, n)
        counts = np.array([n, n - n // 3, 0, 1, n // 4])
        rows = np.concatenate([rng.permutation(n)[:count] for count in counts])
        counts, order = counts[counts > 0], rng.random(((counts > 0).sum(), d)).argsort(axis=1)
        for tries in {1, max(1, d - 1)}:
            yield codes, rows, counts, order, (slots, values, width), tries, min_leaf


CASES = {
    case.__name__: case
    for case in (
        *(
            full_joint,
            full_sums,
            single_sums,
            full_parameters,
            vector_of_full,
            full_of_vector,
            scaled_joint,
            scaled_sums,
            tied_gram,
            squared_distances,
            centred_products,
            level_products,
            subtract_rows,
            rescale_rows,
            add_effects,
        ),
        *(
            locate_levels,
            sum_levels,
            residual_twice,
            products_twice,
            turn_axes,
            scores_of_rows,
            rows_of_scores,
            split_nodes,
        ),
    )
}

# Of each number relative to the largest of its array: sums of a few hundred terms of both signs, in another order.
ROUNDING = 1e-11
# In single precision.
SINGLE = {"single_sums": 1e-6}
# These add in the same order: no difference at all. What they do may depend on how many rows there are, then.
SAME_BITS = {"subtract_rows", "rescale_rows", "add_effects", "locate_levels", "split_nodes"}

TWICE = {"residual_twice", "products_twice"}


def outcome(function, arguments):
    """Return what a function gives and leaves in its arguments, as a flat list of arrays, or its exception."""
    arguments = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    try:
        result = function(*arguments)
    except Exception as error:
        return type(error)
    found = [*(result if isinstance(result, tuple) else [result]), *arguments]
    return [np.asarray(value) for value in found if isinstance(value, (np.ndarray, float, np.floating))]


def compare(pair, arguments):
    ours, theirs = outcome(pair.loop(), arguments), outcome(pair.twin, arguments)
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours is theirs
        return
    if pair.name in TWICE:  # high + low counts, not how the two share it
        left = (ours[0] - theirs[0]) + (ours[1] - theirs[1])
        assert_allclose(left, 0.0, atol=1e-27 * np.abs(theirs[0]).max(initial=1.0))
        ours, theirs = ours[2:], theirs[2:]
    for one, two in zip(ours, theirs, strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
        if pair.name in SAME_BITS:
            np.testing.assert_array_equal(one, two)
        else:
            finite = np.abs(two[np.isfinite(two) & (np.abs(two.astype(float)) < 1e250)])
            rounding = SINGLE.get(pair.name, ROUNDING)
            assert_allclose(one, two, rtol=rounding, atol=rounding * finite.max(initial=0.0))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_loop_and_its_twin_agree(pair):
    cases = list(CASES[pair.name](np.random.default_rng(0)))
    assert cases
    for arguments in cases:
        compare(pair, arguments)


def test_a_wrong_twin_is_found():
    good = next(pair for pair in PAIRS if pair.name == "full_joint")
    wrong = Pair(lambda *a: good.twin(*a) * (1 + 1e-9), good.home)
    wrong.name = good.name
    with pytest.raises(AssertionError):
        for arguments in CASES[good.name](np.random.default_rng(0)):
            compare(wrong, arguments)


def test_which_of_the_two_runs_depends_on_the_size_of_the_fit_alone():
    assert small(300, 12) and not small(100_000, 12) and not small(None, 1)
    called = []

    def numbers(*, plain=None):
        called.append("twin")

    pair = Pair(numbers, "nowhere")
    pair(plain=True)
    assert called == ["twin"]


def test_where_a_loop_cannot_be_compiled_its_twin_takes_over_with_one_warning(monkeypatch):
    monkeypatch.setattr(errors, "_ONCE", set())
    broken = Pair(lambda x: 2 * x, "residmix.kernels.no_such_module")
    with pytest.warns(ResidmixWarning, match="numba can't compile the loops .ModuleNotFoundError") as caught:
        assert broken(3) == 6
    assert broken(4) == 8 and len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Pair(lambda x: 2 * x, "residmix.kernels.no_such_module")(5) == 10


SCRIPT = """
import sys, warnings
{before}
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from residmix import GaussianMixture, Residualizer
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 4)) + 4.0 * rng.integers(0, 2, (6000, 1))
    for family in ("full", "tied", "diag"):
        model = GaussianMixture(2, covariance_type=family, random_state=0).fit(X)
        print(round(model.score(X), 9))
    M = rng.normal(size=(6000, 2))
    print(np.round(np.abs(Residualizer().fit_transform(np.hstack([X] * 10), metadata=M)).sum(), 6))
print(sorted(str(w.message)[:40] for w in caught))
"""


def run(before="", **variables):
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *numbers, told = done.stdout.splitlines()
    return [float(number) for number in numbers], told


@pytest.mark.slow
def test_everything_runs_without_numba_and_with_it_switched_off_to_the_same_numbers():
    expected, told = run()
    assert told == "[]"
    for before, variables in [
        ("sys.modules['numba'] = None", {}),
        ("", {"NUMBA_DISABLE_JIT": "1"}),
        # a piece of numba that another version has elsewhere
        ("import numba.np.arrayobj; del numba.np.arrayobj.populate_array", {}),
    ]:
        numbers, told = run(before, **variables)
        assert_allclose(numbers, expected, rtol=1e-7)
        assert told.count("numba can't compile") == 1 and told.count(",") == 0
