"""A formula may come from anybody: it is a FormulaError that says where, or a design of bounded cost.

A run takes some hundreds. More, by one command:

    RESIDMIX_FORMULAS=20000 pytest tests/design/formula/test_hostile.py
"""

import os
import random
import warnings

import numpy as np
import pandas as pd
import pytest

from residmix.design.fit import MAX_CROSSED, fit_design
from residmix.design.formula.parser import MAX_KNOTS
from residmix.design.formula.tokens import FormulaError

FORMULAS = int(os.environ.get("RESIDMIX_FORMULAS", "400"))
PIECES = [
    "age", "dose", "site", "`total volume`", "C(site)", "C(age)", "C(dose)", "bs(age, df=5)", "bs(", "cr(dose, df=4)",
    "poly(age, 3)", "I(age ** 2)", "log(", "(", ")", "[", "]", ",", "=", "df", "knots=[1, 2]", "**", "2", "9", "1e9",
    "+", "-", "*", ":", "/", "~", "1", "0", "-1", ".5", "'a'", '"', "`", "contr.sum", "contr.treatment(", "True",
    "None", "__class__", "lambda", "\u0664", "\u00b2", "\x00", "\n", "\u202e", "9" * 60, "site:" * 9, "(" * 50,
]  # fmt: skip


def table(n=40):
    rng = np.random.default_rng(0)
    columns = {"age": rng.normal(50, 9, n), "dose": rng.normal(size=n), "total volume": rng.gamma(3, 1, n)}
    return pd.DataFrame(columns | {"site": rng.choice(list("abc"), n)})


def designed(formula):
    frame = table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit_design(lambda: iter([frame]), formula=formula).matrix(frame).dense


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        ("bs(age, df=\u0664)", "not allowed"),
        ("\u0661", "not allowed"),
        ("bs(age, df=" + "9" * 5000 + ")", "at most 40 characters"),
        ("age + " + "1" * 5000, "at most 40 characters"),
        ("bs(age, knots=[" + ",".join(map(str, range(2000))) + "])", "can have 500 knots together"),
        (" + ".join(f"bs(age, df={df})" for df in (150, 151, 152, 153)), "can have 500 knots together"),
        ("C(age):C(dose)", "1599 columns, too many to estimate from 40 rows"),
        ("bs(age, df=20):bs(dose, df=20)", "400 columns, too many to estimate from 40 rows"),
        ("C(age):C(dose):C(`total volume`)", "more than 20000 columns"),
        ("(" * 500 + "age" + ")" * 500, "nested more than"),
    ],
)
def test_what_would_cost_too_much_is_refused_before_it_is_built(formula, told):
    with pytest.raises(FormulaError, match=told):
        designed(formula)


def test_interactions_that_rows_can_tell_apart_are_let_through():
    assert designed("C(site) * bs(age, df=20)").shape == (40, 2 + 20 + 40)


def test_any_text_is_a_formula_error_or_a_design_of_bounded_width():
    chance = random.Random(0)
    fits = 0
    for _ in range(FORMULAS):
        formula = "".join(chance.choice(PIECES) + chance.choice(["", "", " "]) for _ in range(chance.randrange(1, 12)))
        if chance.random() < 0.5:  # more of those that mean something
            terms = chance.choices(PIECES[:12], k=chance.randrange(1, 5))
            formula = "".join(term + chance.choice(["+", "*", ":", "/", "**2+"]) for term in terms) + "age"
        try:
            dense = designed(formula)
        except FormulaError:
            continue
        except ValueError as error:  # values of the table that a function can't take
            told = str(error)
        else:
            fits += 1
            told = "column"
            assert dense.shape[1] <= 2 * MAX_KNOTS + MAX_CROSSED
        assert "column" in told, (formula, told)
    assert FORMULAS / 20 < fits < FORMULAS
