"""Designs: the same numbers from any table and any chunks, and nothing silently wrong."""

import itertools
import json
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from formulaic import model_matrix
from hypothesis import given, settings
from hypothesis import strategies as st

import residmix as rm
from residmix.design import quantiles
from residmix.design.fit import Design, fit_design
from residmix.design.formula.tokens import FormulaError


def table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "site": rng.choice(["ulm", "bonn", "jena", "kiel"], n),
            "age": rng.gamma(9, 6, n),
            "sex": rng.choice(["f", "m"], n),
            "dose": rng.integers(1, 40, n),
            "run": rng.integers(0, 3, n),
            "smoker": rng.random(n) < 0.3,
            "head motion": rng.normal(size=n),
        }
    )


def fit(frame, formula=None, **options):
    return fit_design(lambda: iter([frame]), formula=formula, **options)


def span(matrix):
    """Orthonormal basis of the columns and the intercept."""
    whole = np.column_stack([np.ones(len(matrix)), matrix])
    left, values, _ = np.linalg.svd(whole / np.linalg.norm(whole, axis=0), full_matrices=False)
    return left[:, values > 1e-9 * values[0]]


SIMPLE = [
    "age",
    "site",
    "smoker",
    "C(run)",
    "C(site, contr.treatment('jena'))",
    "C(site, contr.sum)",
    "C(site, contr.helmert)",
    "C(site, levels=['ulm', 'jena', 'kiel', 'bonn'])",
    "site + age + sex",
    "site * age",
    "age:site",
    "site:sex + site + sex",
    "I(age ** 2) + log(dose) + exp(I(age / -50)) + log10(age)",
    "`head motion` + center(age) + scale(age)",
    "poly(age, 3)",
    "poly(age, degree=2, raw=True)",
    "bs(age, df=5)",
    "bs(age, knots=[40, 60], degree=2) + sex",
    "sex:bs(age, df=4) + bs(age, df=4)",
    "bs(log(dose), df=4)",
]
REDUNDANT = [
    "site:sex",
    "site:sex + site:age",
    "sex + site:sex",
    "site / sex",
    "(site + sex + C(run))**3",
    "age + age:site:sex",
]


@pytest.mark.parametrize("formula", SIMPLE)
def test_a_design_is_formulaics_model_matrix(formula):
    frame = table()
    theirs = model_matrix(formula, frame, materializer="narwhals").to_numpy()[:, 1:]
    # The same recurrences on the same doubles; sums over the column differ in order, hence not to the bit.
    np.testing.assert_allclose(fit(frame, formula).matrix(frame).dense, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("formula", ["cr(age, df=4)", "cc(age, df=5)", "cr(dose, df=3) + sex"])
def test_natural_and_cyclic_splines_are_formulaics_centred_ones(formula):
    frame = table()
    theirs = model_matrix(formula.replace("df", "constraints='center', df"), frame, materializer="narwhals")
    design = fit(frame, formula).matrix(frame).dense
    np.testing.assert_allclose(design, theirs.to_numpy()[:, 1:], rtol=1e-10, atol=1e-12)
    assert np.linalg.matrix_rank(np.column_stack([np.ones(300), design])) == design.shape[1] + 1


@pytest.mark.parametrize("formula", REDUNDANT)
def test_interactions_without_main_effects_have_full_rank_and_formulaics_span(formula):
    frame = table()
    ours = fit(frame, formula).matrix(frame).dense
    theirs = model_matrix(formula, frame, materializer="narwhals").to_numpy()[:, 1:]
    assert ours.shape == theirs.shape
    first, second = span(ours), span(theirs)
    assert first.shape[1] == ours.shape[1] + 1
    assert second.shape == first.shape
    # Equal spans: the projection of one on the other loses nothing. 1e-12 is rounding in 300 rows.
    np.testing.assert_allclose(second @ (second.T @ first), first, atol=1e-12)


def as_polars(frame):
    return pl.from_pandas(frame)


def as_arrow(frame):
    return pa.Table.from_pandas(frame)


def as_categories(frame):
    return frame.assign(site=frame.site.astype("category"), sex=frame.sex.astype("category"))


def as_enum(frame):
    return pl.from_pandas(frame).with_columns(pl.col("site").cast(pl.Enum(["ulm", "jena", "x", "bonn", "kiel"])))


def as_dictionary(frame):
    return pa.Table.from_pandas(as_categories(frame))


def as_objects(frame):
    return frame.astype({"site": object, "sex": object, "smoker": object, "age": object})


def as_nullable(frame):
    return frame.convert_dtypes()


KINDS = [as_polars, as_arrow, as_categories, as_enum, as_dictionary, as_objects, as_nullable]
RICH = "site * scale(age) + bs(age, df=5) + cr(dose, df=4) + C(run):sex + smoker + poly(age, 2) + `head motion`"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_gives_the_same_bits(kind):
    frame = table()
    ours = fit(frame, RICH)
    theirs = fit(kind(frame), RICH)
    assert theirs.column_names == ours.column_names
    expected = ours.matrix(frame).dense
    np.testing.assert_array_equal(theirs.matrix(kind(frame)).dense, expected)
    np.testing.assert_array_equal(ours.matrix(kind(frame)).dense, expected)  # fitted on one, used on another


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6))
@pytest.mark.slow
def test_however_the_rows_are_cut_the_design_is_the_same_to_the_bit(cuts):
    frame = table()
    bounds = [0, *sorted(cuts), len(frame)]
    pieces = [frame.iloc[a:b] for a, b in itertools.pairwise(bounds)]
    cut = fit_design(lambda: iter(pieces), formula=RICH)
    assert cut.to_dict() == fit(frame, RICH).to_dict()
    parts = [cut.matrix(piece).dense for piece in pieces]
    np.testing.assert_array_equal(np.concatenate(parts), fit(frame, RICH).matrix(frame).dense)


def test_longer_than_a_learning_block_the_design_is_still_the_same_to_the_bit(monkeypatch):
    monkeypatch.setattr("residmix.design.survey.KEPT_ROWS", 100)  # every pass reads the chunks anew
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"age": rng.gamma(9, 6, 150_000)})
    formula = "scale(age) + poly(age, 2) + bs(age, df=6) + cr(age, df=3)"
    whole = fit(frame, formula).to_dict()
    pieces = [frame.iloc[a : a + 41_003] for a in range(0, len(frame), 41_003)]
    assert fit_design(lambda: iter(pieces), formula=formula).to_dict() == whole


def test_splines_of_columns_too_long_for_memory_have_the_same_knots(monkeypatch):
    frame = table()
    usual = fit(frame, "bs(age, df=6)").to_dict()
    monkeypatch.setattr(quantiles, "IN_MEMORY", 10)
    assert fit(frame, "bs(age, df=6)").to_dict() == usual


# ---- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int8, np.uint16, bool])
def test_arrays_of_any_type_and_order_are_taken_as_they_are_and_left_alone(dtype):
    rng = np.random.default_rng(0)
    matrix = np.asfortranarray((rng.random((30, 3)) * 2).astype(dtype))
    matrix.flags.writeable = False
    design = fit(matrix)
    result = design.matrix(matrix).dense
    assert result.dtype == np.float64 and result.flags.c_contiguous
    assert not np.shares_memory(result, matrix)
    np.testing.assert_array_equal(result, matrix.astype(float))
    assert design.column_names == ("m0", "m1", "m2")


def test_one_dimensional_metadata_is_one_column():
    values = np.arange(5.0)
    np.testing.assert_array_equal(fit(values).matrix(values).dense, values[:, None])
    series = pd.Series(["a", "b"] * 4, name="sex")
    assert fit(series).column_names == ("sex[T.b]",)


def test_columns_of_arrays_can_be_named_in_formulas():
    matrix = np.random.default_rng(0).normal(size=(20, 2))
    design = fit(matrix, "m1 + I(m0 ** 2)")
    np.testing.assert_array_equal(
        design.matrix(matrix).dense, np.column_stack([matrix[:, 1], np.power(matrix[:, 0], 2.0)])
    )


def test_arrays_of_another_width_or_kind_are_refused():
    design = fit(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="has 3 columns, but it had 2 in fit"):
        design.matrix(np.zeros((5, 3)))
    with pytest.raises(TypeError, match="must hold numbers, not object"):
        fit(np.array([["a", 1.0]], dtype=object))
    with pytest.raises(TypeError, match="must hold numbers"):
        fit(np.array(["a", "b"]))
    with pytest.raises(TypeError, match="must hold numbers"):
        fit(np.array(["2020-01-01"], dtype="datetime64[D]"))
    with pytest.raises(ValueError, match=r"\(n,\) or \(n, p\), not \(2, 2, 2\)"):
        fit(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="in fit it was a table with the columns 'age'"):
        fit(table(), "age").matrix(np.zeros((5, 1)))


def test_without_metadata_the_design_is_empty():
    design = fit_design(None)
    assert design.matrix(None, n_rows=4).dense.shape == (4, 0)
    assert fit(table(), "1").matrix(table()).dense.shape == (300, 0)
    with pytest.raises(ValueError, match="needs metadata"):
        fit_design(None, formula="age")
    with pytest.raises(ValueError, match="metadata is needed, with the columns 'age'"):
        fit(table(), "age").matrix(None, n_rows=3)


# ---- terms -----------------------------------------------------------------------------------------------------------


def test_without_a_formula_numbers_are_numbers_and_the_rest_are_factors():
    design = fit(table().drop(columns="run"))
    assert [term.kind for term in design.terms] == ["factor", "numeric", "factor", "numeric", "factor", "numeric"]
    assert design.column_names[:4] == ("site[T.jena]", "site[T.kiel]", "site[T.ulm]", "age")


def test_terms_say_where_their_columns_are():
    frame = table()
    design = fit(frame, "site + bs(age, df=4) + site:age", preserve="sex + dose")
    matrix = design.matrix(frame, preserved=True).dense
    assert matrix.shape == (300, design.n_removed + design.n_preserved)
    ends = [term.columns.stop for term in design.terms]
    assert [0, *ends[:-1]] == [term.columns.start for term in design.terms] and ends[-1] == matrix.shape[1]
    assert [(t.name, t.kind, t.preserved) for t in design.terms] == [
        ("site", "factor", False),
        ("bs(age, df=4)", "spline", False),
        ("site:age", "interaction", False),
        ("sex", "factor", True),
        ("dose", "numeric", True),
    ]
    assert design.terms[0].levels == ("bonn", "jena", "kiel", "ulm")
    assert dict(zip(design.terms[0].levels, design.terms[0].counts, strict=True)) == frame.site.value_counts().to_dict()
    assert design.columns == ("site", "age") and design.preserved_columns == ("sex", "dose")
    np.testing.assert_array_equal(design.matrix(frame[["age", "site"]]).dense, matrix[:, : design.n_removed])


def test_the_levels_do_not_depend_on_the_order_of_rows_or_categories():
    frame = table()
    shuffled = frame.sample(frac=1, random_state=0)
    shuffled["site"] = pd.Categorical(shuffled.site, categories=["ulm", "kiel", "bonn", "none", "jena"])
    assert fit(shuffled, "site").to_dict() == fit(frame, "site").to_dict()


def test_a_preserved_effect_cannot_be_removed_too():
    with pytest.raises(ValueError, match="sex is in both formula and preserve"):
        fit(table(), "age + sex", preserve="sex")


def test_a_factor_of_many_levels_gives_codes_instead_of_columns():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"subject": [f"s{i:04d}" for i in rng.permutation(np.repeat(np.arange(250), 4))]})
    frame["age"] = rng.normal(size=1000)
    design = fit(frame, "age + subject")
    assert design.n_removed == 1 and [term.kind for term in design.terms] == ["numeric", "absorbed"]
    (factor,) = design.factors
    result = design.matrix(frame)
    assert result.dense.shape == (1000, 1)
    assert result.codes[0].dtype == np.int32
    assert list(np.array(factor.levels)[result.codes[0]]) == list(frame.subject)
    written_out = fit(frame, "age + subject", absorb_above=250)
    assert written_out.n_removed == 250 and not written_out.factors
    kept = fit(frame, "age", preserve="subject")
    assert kept.n_preserved == 249 and not kept.factors


def test_a_constant_column_and_a_factor_of_one_level_are_fine():
    frame = table().assign(age=40.0, site="ulm")
    assert fit(frame, "site + sex").column_names == ("sex[T.m]",)
    for formula in ("age", "scale(age)", "bs(age, df=4)"):
        assert np.isfinite(fit(frame, formula).matrix(frame).dense).all()


# ---- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", [*SIMPLE, *REDUNDANT, RICH])
def test_a_design_saved_as_json_gives_the_same_bits(formula):
    frame = table()
    design = fit(frame, formula, preserve="cr(dose, df=5)" if "dose" not in formula else None, on_unknown="mean")
    again = Design.from_dict(json.loads(json.dumps(design.to_dict(), allow_nan=False)))
    assert again.column_names == design.column_names and again.terms == design.terms
    for preserved in (False, True):
        expected = design.matrix(frame, preserved=preserved).dense
        np.testing.assert_array_equal(again.matrix(frame, preserved=preserved).dense, expected)


def test_odd_column_names_survive_saving():
    frame = pd.DataFrame(
        {
            "a`b": ["x", "y"] * 5,
            "{evil}": range(10),
            "": np.arange(10.0),
            "C(x)": np.arange(10.0),
            "x.y": np.arange(10.0),
        }
    )
    design = fit(frame)
    again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    np.testing.assert_array_equal(again.matrix(frame).dense, design.matrix(frame).dense)


@pytest.mark.parametrize("level", ["b\tx", "b\u00a0x", "b'x", "b\u200bx"])
def test_levels_of_any_characters_in_a_formula_survive_saving(level):
    frame = pd.DataFrame({"site": [level, "a", "c"] * 5})
    quote = '"' if "'" in level else "'"
    for written in (f"contr.treatment({quote}{level}{quote})", f"levels=[{quote}{level}{quote}, 'c', 'a']"):
        design = fit(frame, f"C(site, {written})")
        again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
        np.testing.assert_array_equal(again.matrix(frame).dense, design.matrix(frame).dense)


def test_a_tampered_file_passes_the_guard_again():
    saved = fit(table(), "age").to_dict()
    saved["terms"][0]["factors"] = ["{__import__('os').system('true')}"]
    with pytest.raises(FormulaError):
        Design.from_dict(saved)


def test_a_design_can_be_pickled():
    frame = table()
    design = fit(frame, RICH)
    design.matrix(frame)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(design)).matrix(frame).dense, design.matrix(frame).dense)


@pytest.mark.parametrize("missing", ["mean", "indicator"])
@pytest.mark.parametrize("dtype", ["float64", "object"])
def test_a_column_without_any_value_is_refused(missing, dtype):
    table = pd.DataFrame({"m": pd.Series([None] * 20, dtype=dtype), "x": np.arange(20.0)})
    with pytest.raises(ValueError, match="metadata column 'm' has no values; leave it out"):
        rm.Residualizer("m", missing=missing).fit(table)


def test_levels_that_are_numbers_here_and_text_there_are_told_so():
    table = pd.DataFrame({"k": np.tile([1, 2], 20), "x": np.arange(40.0)})
    model = rm.Residualizer("C(k)").fit(table)
    with pytest.raises(ValueError, match=r"'1', '2', in 40 rows .*in fit this column held int, and here it holds str"):
        model.transform(table.assign(k=table["k"].astype(str)))
    assert np.array_equal(model.transform(table.assign(k=table["k"].astype(float))), model.transform(table))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([Decimal(k) for k in range(20)], "holds values of type Decimal; make them all numbers or text"),
        ([1, "a"] * 10, "mixes values of types int, str"),
        (pd.period_range("2020", periods=20, freq="M"), r"holds period\[M\], which is neither a number nor text"),
        (np.arange(20) * 1j, "holds complex128, which is neither"),
    ],
    ids=["decimal", "mixed", "period", "complex"],
)
def test_columns_of_other_kinds_are_refused_with_their_kind(values, message):
    table = pd.DataFrame({"m": values, "x": np.arange(20.0)})
    with pytest.raises(TypeError, match=f"metadata column 'm' {message}"):
        rm.Residualizer("m").fit(table)
