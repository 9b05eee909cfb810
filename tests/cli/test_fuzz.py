"""Whatever is typed or read: an answer, or a clear error; no traceback, and no file but those that were asked for."""

import os

import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residmix.cli import main

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def place(tmp_path, monkeypatch, rng):
    table = pd.DataFrame({"a": rng.normal(size=30), "b": rng.normal(size=30), "site": ["x", "y", "z"] * 10})
    table.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "fit.toml").write_text('formula = "site"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answered(arguments, place):
    """Run a command; it ends in order, and the folder holds what it held and what was named."""
    before = set(os.listdir(place))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (0, 1, 2), (arguments, result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert "Traceback" not in result.output
    if result.exit_code:
        assert "Error" in result.stderr or "Usage" in result.stderr
    new = set(os.listdir(place)) - before
    assert new <= {"o", "o.csv", "o.html"}, new
    for name in new:
        os.remove(place / name)


WORDS = st.sampled_from(
    [
        *(
            "fit",
            "transform",
            "predict",
            "sample",
            "report",
            "inspect",
            "merge",
            "t.csv",
            "fit.toml",
            "--formula",
            "site",
        ),
        *("C(site)", "--features", "a", "a,b", "*", "-k", "0", "1", "2:3", "--family", "auto", "diag", "--scale"),
        *("--shrinkage", "eb", "blup", "-o", "o", "o.csv", "--residuals", "--labels", "--report", "o.html", "--json"),
        *("--quiet", "--dry-run", "--drop-missing", "--config", "--preserve", "b", "--exclude", "--joint", "--missing"),
        *("mean", "--fail-if-left", "0.9", "--sep", ";", "--thousands", "--resume", "--", "-", "", "../o", "--compare"),
        *("--seed", "-1", "1e9", "\x00", "💥"),
    ]
)


@FEW
@given(st.lists(WORDS, max_size=9))
def test_any_words_are_answered(place, words):
    answered(words, place)


@FEW
@given(st.lists(WORDS, max_size=5))
def test_any_options_of_fit_are_answered(place, words):
    answered(["fit", "t.csv", "--formula", "C(site)", "-k", "1", *words], place)


@FEW
@given(st.text(alphabet="ab site()+-*:/,'\"`~^|[]{}0123.C_\\$;=<>\n\té", max_size=25))
def test_any_formula_is_answered(place, formula):
    answered(["fit", "t.csv", "--formula", formula, "-k", "0", "-q"], place)


CELL = st.sampled_from(
    ["1", "2.5", "-3e4", "", "NA", "nan", "inf", "1,5", '"1,234"', "<LOD", "x", '"', "é", "💥", "1e400", " "]
)


@FEW
@given(
    st.lists(st.sampled_from(["a", "b", "site", "", "a b", "id", "$", "<b>"]), min_size=1, max_size=4),
    st.lists(st.lists(CELL, min_size=1, max_size=5), max_size=12),
    st.sampled_from([",", ";", "\t"]),
)
def test_any_csv_file_is_answered(place, names, rows, separator):
    text = "\n".join(separator.join(row) for row in [names, *rows])
    (place / "u.csv").write_text(text, encoding="utf-8")
    answered(["fit", "u.csv", "--formula", "site", "-k", "1", "-q"], place)
    answered(["fit", "u.csv", "-k", "1", "--drop-missing", "-q"], place)


@FEW
@given(st.binary(max_size=200))
def test_any_bytes_are_answered(place, content):
    for name in ("u.csv", "u.parquet", "u.arrow", "u.npy"):
        (place / name).write_bytes(content)
        answered(["fit", name, "--formula", "site", "-k", "1", "-q"], place)
    answered(["inspect", "u.csv"], place)
    (place / "c.toml").write_bytes(content)
    answered(["fit", "t.csv", "--config", "c.toml", "--formula", "site", "-k", "1", "-q"], place)


def test_a_flipped_byte_of_a_model_is_answered(place, rng):
    CliRunner().invoke(main, ["fit", "t.csv", "--formula", "site", "-k", "2", "-o", "m", "-q"])
    whole = (place / "m").read_bytes()
    for at in rng.integers(0, len(whole), 60):
        broken = bytearray(whole)
        broken[at] ^= int(rng.integers(1, 256))
        (place / "m2").write_bytes(bytes(broken))
        answered(["predict", "m2", "t.csv", "-o", "o.csv"], place)
