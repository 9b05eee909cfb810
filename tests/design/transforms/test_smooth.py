"""Smooth functions in formulas: the basis, its penalty, and what they are let through beside."""

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import CubicSpline

from residmix.design.design import Design
from residmix.design.fit import fit_design
from residmix.design.formula.parser import parse_formula
from residmix.design.formula.tokens import FormulaError
from residmix.design.transforms.smooth import learn_smooth, roughness, smooth
from residmix.errors import DesignWarning


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"age": rng.gamma(4, 12, 200), "dose": rng.normal(size=200), "sex": rng.choice(["F", "M"], 200)}
    )


def learned(table, formula, **options):
    return fit_design(lambda: iter([table]), formula=formula, **options)


def test_the_basis_is_the_natural_cubic_spline_and_goes_on_straight(table):
    x = table["age"].to_numpy()
    state = learn_smooth(lambda: iter([x]), {"k": 7})
    b = np.random.default_rng(1).normal(size=6)
    knots = np.array(state["knots"])
    spline = CubicSpline(knots, np.array(state["directions"]) @ b, bc_type="natural")
    np.testing.assert_allclose(smooth(x, state, {}) @ b, spline(x), atol=1e-12)
    ends = np.array([knots[0] - 30, knots[-1] + 50])
    straight = spline(knots[[0, -1]]) + spline(knots[[0, -1]], 1) * (ends - knots[[0, -1]])
    np.testing.assert_allclose(smooth(ends, state, {}) @ b, straight, rtol=1e-10)


def test_the_penalty_is_the_integral_of_the_squared_second_derivative(table):
    state = learn_smooth(lambda: iter([table["age"].to_numpy()]), {})
    b = np.random.default_rng(1).normal(size=9)
    knots = np.array(state["knots"])
    spline = CubicSpline(knots, np.array(state["directions"]) @ b, bc_type="natural")
    # the second derivative is linear between knots, so that Simpson's rule is exact
    second, middle = spline(knots, 2), spline((knots[1:] + knots[:-1]) / 2, 2)
    integral = np.sum(np.diff(knots) / 6 * (second[:-1] ** 2 + 4 * middle**2 + second[1:] ** 2))
    np.testing.assert_allclose(b @ roughness(state) @ b, integral * np.ptp(knots) ** 3, rtol=1e-10)


def test_with_both_bounds_nothing_depends_on_the_rows(table):
    formula = "sex + s(age, by=sex, lower=0, upper=120) + bs(dose, df=6, lower=-4, upper=4)"
    one, two = learned(table[:100], formula), learned(table[100:], formula)
    assert one.same_coding(two)
    # quantiles do
    assert not learned(table[:100], "s(age)").same_coding(learned(table[100:], "s(age)"))
    assert not learned(table[:100], "bs(dose, df=6, lower_bound=-4, upper_bound=4)").same_coding(
        learned(table[100:], "bs(dose, df=6, lower_bound=-4, upper_bound=4)")
    )


def test_rows_and_learning_have_the_same_bits_in_any_chunks(table):
    whole = learned(table, "s(age, k=6)")
    parts = fit_design(lambda: iter([table[:33], table[33:]]), formula="s(age, k=6)")
    assert whole.same_coding(parts)
    pieces = np.vstack([whole.matrix(table[i : i + 7]).dense.copy() for i in range(0, 200, 7)])
    assert (pieces == whole.matrix(table).dense).all()


def test_every_level_has_a_curve_whatever_the_reference(table):
    design = learned(table, "sex + s(age, k=5, by=sex)")
    assert [curve.name for curve in design.curves] == ["s(age, k=5, by=sex)[F]", "s(age, k=5, by=sex)[M]"]
    dense = design.matrix(table).dense
    for curve in design.curves:
        other = (table["sex"] != curve.level).to_numpy()
        assert (dense[np.ix_(other, curve.columns)] == 0).all()
        np.testing.assert_array_equal(dense[np.ix_(~other, curve.columns)], curve.rows(table["age"][~other]))
    turned = learned(table, "sex + sex:s(age, k=5)")
    assert [curve.name for curve in turned.curves] == [curve.name for curve in design.curves]
    for one, two in zip(design.curves, turned.curves, strict=True):
        np.testing.assert_array_equal(dense[:, one.columns], turned.matrix(table).dense[:, two.columns])


def test_a_design_with_curves_survives_json(table):
    design = learned(table, "C(sex) + s(log(age), k=5, by=C(sex))", preserve="dose + s(age, by=dose)")
    again = Design.from_dict(design.to_dict())
    assert again.same_coding(design)
    assert (again.matrix(table, preserved=True).dense == design.matrix(table, preserved=True).dense).all()


def test_by_is_read_as_a_product():
    terms = [":".join(factor.text for factor in term) for term in parse_formula("s(age, 5, by=C(sex)) + sex")]
    assert terms == ["sex", "s(age, k=5):C(sex)"]


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        ("s(age):s(dose)", r"s\(\) takes one variable"),
        ("s(age):sex:dose", r"s\(\) takes one variable"),
        ("log(s(age))", "a term of its own"),
        ("s(age, by=log(dose))", "by= must be a column"),
        ("s(age, k=2)", "k must be a whole number from 3"),
        ("s(age, k=300) + s(dose, k=300)", "can have 500 knots"),
        ("s(age) * sex", "already has a curve for each level"),
        ("s(age, lower=5, upper=1)", "above the upper bound"),
        ("bs(age, lower=1, lower_bound=1)", "not both"),
    ],
)
def test_what_makes_no_sense_is_refused(table, formula, told):
    with pytest.raises(FormulaError, match=told):
        learned(table, formula)


def test_few_distinct_values_ask_for_fewer_knots(table):
    with pytest.raises(FormulaError, match="use a smaller k="):
        learned(table.assign(age=np.arange(200) % 7), "s(age)")
    with pytest.raises(FormulaError, match="all are 3"):
        learned(table.assign(age=3.0), "s(age)")


def test_curves_without_the_main_effect_are_told(table):
    with pytest.warns(DesignWarning, match="Add sex"):
        learned(table, "s(age, by=sex)")
    with pytest.warns(DesignWarning, match="Add dose"):
        learned(table, "s(age, by=dose)")
