"""Formulas: what is let through, what is refused, and the algebra of terms."""

import sys

import pytest
from formulaic import Formula
from hypothesis import given
from hypothesis import strategies as st

from residmix.design.formula.parser import formula_columns, parse_formula
from residmix.design.formula.tokens import FormulaError


def labels(text):
    return [":".join(factor.label for factor in term) for term in parse_formula(text)]


ATTACKS = [
    "{__import__('os').system('touch /tmp/owned')}",
    "1 + {age}",
    "__import__('os')",
    "age.__class__",
    "age.__class__.__mro__",
    "().__class__",
    "lambda: 0",
    "(lambda x: x)(age)",
    "eval('1')",
    "exec(age)",
    "getattr(age, 'dtype')",
    "open('/etc/passwd')",
    "np.log(age)",
    "log(age)(1)",
    "log(__import__('os'))",
    "f'{age}'",
    "I(f'{age}')",
    "age[0]",
    "[x for x in age]",
    "age if sex else 0",
    "age; import os",
    "age\nimport os",
    "age := 1",
    "I(age := 3)",
    "C(site, levels=[__import__('os')])",
    "C(site, levels=open('x'))",
    "C(site, contr.custom(1))",
    "bs(age, **{'df': 4})",
    "bs(age, *knots)",
    "bs(age, df=age)",
    "bs(age, df=(lambda: 4)())",
    "'age'",
    '"""age"""',
    "age\\",
    "age @ sex",
    "age | site",
    "age % 2",
    "age == 3",
    "not age",
    "await age",
    "I(1)",
    "1e999",
    "I(age * 1e999)",
    "C(age + 1)",
    "log(C(site))",
    "poly(C(site), 2)",
    "bs(age, _state={})",
    "te(age, sex)",
    "hashed(site)",
    "age ~ site",
    "True",
    "",
    "   ",
    "()",
    "age +",
    "+ ",
    "log(",
    "log()",
    "`age",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_what_the_grammar_does_not_list_is_refused_and_shown(text):
    with pytest.raises(FormulaError) as refused:
        parse_formula(text)
    message = str(refused.value)
    assert message.endswith("^")
    # The offending line stands in the message, above the caret.
    assert text.split("\n")[0].strip()[:20] in message


@given(st.text(alphabet="ab(){}[]+-*/:,=.'\"` 1_\\@!#$%^&|~\n", max_size=40))
def test_any_text_is_parsed_or_refused_but_never_breaks_the_parser(text):
    try:
        terms = parse_formula(text)
    except FormulaError:
        return
    # What was let through is written out in a form that means the same.
    written = " + ".join(":".join(factor.text for factor in term) for term in terms) or "1"
    assert parse_formula(written) == terms


@pytest.mark.parametrize(
    "text",
    [
        "a**99999999999",
        "(a + b)**9999",
        "I(a**9999)",
        "I(9**9**9**9*a)",
        "(((a+b+c+d+e+f+g+h)**9)**9)**9",
        "(" + "+".join(f"a{i}" for i in range(300)) + ")**9",
        "*".join(f"a{i}" for i in range(64)),
        ":".join(f"a{i}" for i in range(64)),
        "(" * 5000 + "a" + ")" * 5000,
        "I(" + "-" * 5000 + "a)",
        "I(" + "+".join(["a"] * 5000) + ")",
        "a + " * 10_000 + "a",
    ],
    ids=lambda text: text[:20],
)
def test_a_short_text_cannot_ask_for_endless_work(text):
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += 1
        assert calls < 5_000_000, "without the bounds, for ever"

    sys.setprofile(count)
    try:
        with pytest.raises(FormulaError):
            parse_formula(text)
    finally:
        sys.setprofile(None)


def test_what_is_bounded_is_the_work_not_the_formula():
    assert len(parse_formula("(((a + b + c + d)**9)**9)**9")) == 15
    assert len(parse_formula(" + ".join(f"a{i}" for i in range(2500)))) == 2500


@pytest.mark.parametrize("text", ["0 + age", "age - 1", "age + 0", "-1 + age", "0"])
def test_dropping_the_intercept_is_refused_with_the_reason(text):
    with pytest.raises(FormulaError, match="intercept can't be left out"):
        parse_formula(text)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "1",
        "1 + a",
        "a + b",
        "a * b",
        "a:b",
        "b:a + a:b",
        "a + a",
        "a:a",
        "a / b",
        "(a + b) / c",
        "a / (b + c)",
        "a / b / c",
        "a * b - a",
        "a * b * c - a:b:c",
        "(a + b + c)**2",
        "(a + b) ** 3 - b",
        "a * b:c",
        "a:b * c",
        "(a + b):(c + d)",
        "a - a",
        "a + (b - a)",
        "a*b + c/d",
        "a + b:c + d - b",
    ],
)
def test_the_algebra_of_terms_is_formulaics(text):
    theirs = [frozenset(map(str, term.factors)) for term in Formula(text)]
    ours = [frozenset(factor.label for factor in term) for term in parse_formula(text)]
    assert ours == [term for term in theirs if term != {"1"}]


def test_a_leading_tilde_is_read_as_nothing():
    assert parse_formula("~ age + site") == parse_formula("age + site")


def test_columns_inside_calls_and_in_backticks_are_found():
    text = "bs(age, df=4) + C(site, levels=['age2', 'b']):`total volume` + I(log(a) / `x``y` - 2) + age"
    assert formula_columns(text) == ("age", "a", "x`y", "site", "total volume")


def test_columns_of_a_refused_formula_are_not_given():
    with pytest.raises(FormulaError):
        formula_columns("age + {__import__('os')}")


@pytest.mark.parametrize(
    "text",
    [
        "bs(age, df=4, extrapolation='extend')",
        "bs(age, knots=[30, 40.5], degree=2)",
        "C(site, contrast=contr.treatment('b'))",
        "C(site, contrast=contr.sum, levels=['a', 'b'])",
        "I((age - 50) / 10)",
        "I(-(age ** 2))",
        "log(I(age + 1))",
        "poly(scale(age), degree=3, raw=True)",
        "`age at scan`",
    ],
)
def test_an_expression_is_written_as_it_was_read(text):
    ((factor,),) = parse_formula(text)
    assert factor.text == text


def test_positional_options_and_keywords_mean_the_same():
    assert parse_formula("bs(age, 4)") == parse_formula("bs(age, df=4)")
    assert parse_formula("C(s, contr.treatment('b'))") == parse_formula("C(s, contrast=contr.treatment(base='b'))")


def test_errors_suggest_what_was_meant():
    with pytest.raises(FormulaError, match="did you mean 'df'"):
        parse_formula("bs(age, dff=4)")
    with pytest.raises(FormulaError, match="did you mean 'log'"):
        parse_formula("np.log(age)")
    with pytest.raises(FormulaError, match=r"in backticks: `percent\.mito`"):
        parse_formula("percent.mito")
    with pytest.raises(FormulaError, match="'df' twice"):
        parse_formula("bs(age, 4, df=4)")
    with pytest.raises(FormulaError, match="a formula is a string"):
        parse_formula(["age"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Age (years) + site", "backticks: `Age (years)`"),
        ("site + vol (mm3)", "backticks: `vol (mm3)`"),
        ("total volume", "spaces: `total volume`"),
        ("site, age", "write '+' instead of ','"),
    ],
)
def test_what_people_write_by_habit_is_told_with_what_is_right(text, told):
    with pytest.raises(FormulaError) as raised:
        parse_formula(text)
    assert told in str(raised.value)
