"""Confounder tests: level, power, and agreement with mlconfound."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import residmix as rm
from residmix.diagnostics.confounding.swaps import Swaps, permuted_products

CASES = json.loads((Path(__file__).parents[2] / "fixtures" / "mlconfound.json").read_text())


def simulated(n, rng, kind, lean=0.0):
    """Return prediction, target and confounder for which the null hypothesis holds, or fails by `lean`."""
    c = rng.normal(size=n)
    y = 0.6 * c + rng.normal(size=n)
    own, other = (y, c) if kind == "partial" else (c, y)
    return own + lean * other + rng.normal(size=n), y, c


@pytest.mark.parametrize("kind", ["partial", "full"])
def test_p_values_are_uniform_where_the_null_hypothesis_holds(kind):
    rng = np.random.default_rng(0)
    p = [
        rm.confounder_test(
            *simulated(60, rng, kind), kind, statistic="partial-r2", n_permutations=39, n_steps=15
        ).p_value
        for _ in range(120)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert stats.binomtest(int((np.array(p) <= 0.05).sum()), 120, 0.05).pvalue > 0.01
    # the same predictions depend on what the test holds fixed
    prediction, y, _ = simulated(60, rng, kind)
    assert stats.pearsonr(prediction, y).pvalue < 0.05


@pytest.mark.parametrize("kind", ["partial", "full"])
def test_predictions_that_lean_are_found(kind):
    rng = np.random.default_rng(1)
    assert rm.confounder_test(*simulated(300, rng, kind, 0.6), kind, n_permutations=199).p_value < 0.02


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.slow
def test_it_agrees_with_mlconfound(case):
    n, categorical, lean = case["n"], case["categorical"], case["lean"]
    rng = np.random.default_rng(n + categorical)  # as tests/fixtures/mlconfound.py draws them
    for kind in ["partial"] if case["kind"] == "partial" else ["partial", "full"]:
        if kind == "partial":
            c = rng.integers(0, 3, n) if categorical else rng.normal(size=n)
            shift = c - 1.0 if categorical else c
            y = 0.6 * shift + rng.normal(size=n)
        own, other = (y, shift) if kind == "partial" else (shift, y)
        prediction = np.round(own + lean * other + rng.normal(size=n), 6)
    data = np.round(y, 6), c.astype(str) if categorical else np.round(c, 6)
    found = rm.confounder_test(prediction, *data, case["kind"])
    assert found.statistic == pytest.approx(case["statistic"], rel=1e-6)
    assert found.expected[1] == pytest.approx(case["expected"], abs=0.01)
    # p values of 999 and of 1,000 permutations, by models that differ a little
    spread = np.sqrt(2 * case["p"] * (1 - case["p"]) / 1000)
    assert abs(found.p_value - case["p"]) < 3 * spread + 0.01


def test_any_number_and_type_of_confounders():
    rng = np.random.default_rng(0)
    n = 400
    frame = pd.DataFrame({"age": rng.normal(size=n), "site": rng.choice(list("abc"), n), "dose": rng.normal(size=n)})
    effect = frame["age"] + (frame["site"] == "a") + np.sin(frame["dose"])
    y = effect.to_numpy() + rng.normal(size=n)
    for target in (y, y > 0):
        clean, leaning = y + rng.normal(size=n), y + effect + rng.normal(size=n)
        options = {"n_permutations": 99}
        if target is y:
            assert rm.confounder_test(clean, target, frame, **options).p_value > 0.05
        assert rm.confounder_test(leaning, target, frame, **options).p_value < 0.05
        assert rm.confounder_test(clean, target, frame, "full", **options).p_value < 0.05
    for part in (frame[["age", "dose"]], frame["site"], frame[["site"]].to_numpy()):
        assert rm.confounder_test(y + rng.normal(size=n), y, part, **options).p_value > 0.02
    labels = np.where(clean > 0, "high", "low")
    assert 0 < rm.confounder_test(labels, y, frame["site"], **options).statistic < 1


def test_steps_leave_the_distribution_what_it_is():
    """Of three values at three places all six permutations come as often as their probabilities say."""
    r, g = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [0.5], [1.2]])
    code = np.array([[0.0], [1.0], [2.0]])
    swaps = Swaps(r, g, carried=code, basis=np.array([[1.0], [10.0], [100.0]]))
    found = permuted_products(swaps, 30_000, 40, 0)[:, 0, 0].round().astype(int)
    weights = {
        sum(10**i * v for i, v in enumerate(order)): np.exp((r[list(order)] * g).sum())
        for order in permutations(range(3))
    }
    total = sum(weights.values())
    for value, weight in weights.items():
        assert np.mean(found == value) == pytest.approx(weight / total, abs=0.02)


def test_the_same_numbers_twice_and_in_blocks():
    rng = np.random.default_rng(0)
    data = simulated(5000, rng, "partial")
    one, two = (rm.confounder_test(*data, n_permutations=39, n_steps=5) for _ in range(2))
    assert np.array_equal(one.null, two.null)
    assert one.to_dict()["n_permutations"] == 39
    assert one.expected[0] < one.expected[1] < one.expected[2]


def test_input_that_makes_no_sense_is_refused():
    x = np.arange(30.0)
    with pytest.raises(ValueError, match="is constant"):
        rm.confounder_test(x, x, np.ones(30))
    with pytest.raises(ValueError, match="29 rows"):
        rm.confounder_test(x, x, x[:29])
    with pytest.raises(ValueError, match="missing values"):
        rm.confounder_test(x, np.where(x == 3, np.nan, x), x)
    with pytest.raises(ValueError, match="'kind' parameter of confounder_test"):
        rm.confounder_test(x, x, x, "both")
    with pytest.raises(ValueError, match="one column"):
        rm.confounder_test(x, np.column_stack([x, x]), x)
