"""transform, predict, sample, report, inspect, merge: the library's answers, in files."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.data import penguins

FEATURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


@pytest.fixture
def place(tmp_path):
    penguins().to_csv(tmp_path / "p.csv", index=False)
    rm.save(rm.ResidualMixture(3, formula="C(sex)", features=FEATURES, random_state=0).fit(penguins()), tmp_path / "m")
    rm.save(rm.Residualizer("C(sex)", features=FEATURES).fit(penguins()), tmp_path / "r")
    return tmp_path


@pytest.mark.parametrize("model", ["m", "r"])
def test_transform_writes_residuals(run, place, model):
    run("transform", place / model, place / "p.csv", "-o", place / "o.parquet")
    fitted = rm.load(place / model)
    expected = fitted.residuals if model == "m" else fitted.transform
    np.testing.assert_array_equal(pd.read_parquet(place / "o.parquet").to_numpy(), expected(penguins()))


@pytest.mark.slow
def test_predict_writes_components_probabilities_densities_and_p_values(run, place):
    model = rm.load(place / "m")
    for option, expected in (
        ((), model.predict(penguins())[:, None]),
        (("--probabilities",), model.predict_proba(penguins())),
        (("--density",), model.score_samples(penguins())[:, None]),
        (("--outliers",), model.outlier_pvalues(penguins())[:, None]),
    ):
        run("predict", place / "m", place / "p.csv", "-o", place / "o.parquet", "--force", *option, "-q")
        np.testing.assert_array_equal(pd.read_parquet(place / "o.parquet").to_numpy(), expected)
    assert run("predict", place / "m", place / "p.csv", "-o", "-").stdout.count("\n") == 334
    assert "no components" in run("predict", place / "r", place / "p.csv", "-o", place / "x.csv", code=1).stderr


def test_features_that_came_as_text_are_told_with_what_reads_them(run, place):
    table = penguins()
    table["body_mass_g"] = [f"{value:,.0f}" for value in table["body_mass_g"]]
    table.to_csv(place / "t.csv", index=False)
    for command in ("transform", "predict"):
        assert "--thousands ','" in run(command, place / "m", place / "t.csv", "-o", place / "o.csv", code=1).stderr
    run("transform", place / "m", place / "t.csv", "--thousands", ",", "-o", place / "o.csv")
    np.testing.assert_allclose(pd.read_csv(place / "o.csv"), rm.load(place / "m").residuals(penguins()), atol=1e-9)
    table.drop(columns="bill_depth_mm").to_csv(place / "u.csv", index=False)
    told = run("transform", place / "m", place / "u.csv", "-o", place / "p2.csv", code=1).stderr
    assert "unknown column 'bill_depth_mm'" in told


def test_sample_draws_a_row_for_each_row_of_metadata(run, place):
    run("sample", place / "m", place / "p.csv", "-o", place / "o.csv", "--seed", 3)
    drawn = pd.read_csv(place / "o.csv")
    assert list(drawn) == [*FEATURES, "component"]
    assert len(drawn) == 333
    model = rm.load(place / "m")
    model.random_state = 3
    expected, labels = model.sample(metadata=penguins()[["sex"]])
    np.testing.assert_allclose(drawn[FEATURES], expected, rtol=1e-12)
    np.testing.assert_array_equal(drawn["component"], labels)
    assert "with the columns sex" in run("sample", place / "m", "-n", 3, "-o", place / "x.csv", code=2).stderr


def test_sample_of_a_model_without_metadata_takes_a_number(run, place):
    rm.save(rm.GaussianMixture(2, random_state=0).fit(penguins()[FEATURES]), place / "g")
    run("sample", place / "g", "-n", 5, "-o", place / "o.csv")
    assert len(pd.read_csv(place / "o.csv")) == 5


@pytest.mark.slow
def test_report_is_a_page_or_json_by_its_ending(run, place):
    run("report", place / "m", place / "p.csv", "-o", place / "o.html", "--compare", "species", "-q")
    assert (place / "o.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    run("report", place / "m", place / "p.csv", "-o", place / "o.json", "-q")
    assert json.loads((place / "o.json").read_text(encoding="utf-8"))["schema"] == 2
    run("report", place / "r", "-o", place / "alone.html", "-q")
    assert "Effects by term" in (place / "alone.html").read_text(encoding="utf-8")
    assert "must end in" in run("report", place / "m", place / "p.csv", "-o", place / "o.pdf", code=2).stderr


def test_inspect_of_a_model_of_many_features_stays_readable(run, tmp_path, rng):
    names = [f"x{j}" for j in range(500)]
    model = rm.Residualizer(features=names).fit(
        pd.DataFrame(rng.normal(size=(40, 500)), columns=names), metadata=np.arange(40.0)
    )
    rm.save(model, tmp_path / "wide")
    shown = run("inspect", tmp_path / "wide").stdout
    assert "'x11', ...: 500 in all]" in shown and max(map(len, shown.splitlines())) < 400
    told = json.loads(run("inspect", tmp_path / "wide", "--json").stdout)
    assert told["model_file"]["settings"]["features"] == names


def test_inspect_tells_what_the_file_holds(run, place):
    shown = run("inspect", place / "m").stdout
    assert "C(sex)" in shown
    assert "3 (full)" in shown
    told = (r"rows +333", r"settings +.*formula='C\(sex\)'", r"written by +.*residmix \d", "checksum +[0-9a-f]{32}")
    for line in told:
        assert re.search(line, shown), (line, shown)
    assert "tol=" not in shown  # settings that are the default aren't told
    told = json.loads(run("inspect", place / "r", "--json").stdout)
    assert (told["model"], told["n_rows"], told["metadata_columns"]) == ("Residualizer", 333, ["sex"])


def test_a_report_names_the_model_file_that_it_is_about(run, place):
    checksum = json.loads(run("inspect", place / "m", "--json").stdout)["model_file"]["checksum"]
    run("report", place / "m", "-o", place / "about.json")
    assert json.loads((place / "about.json").read_text())["model_checksum"] == checksum
    run("report", place / "m", "-o", place / "about.html")
    assert checksum in (place / "about.html").read_text()


def test_merged_models_are_the_model_of_all_rows(run, place):
    table = penguins().sample(frac=1, random_state=0)
    for name, part in (("one", table[:150]), ("two", table[150:])):
        part.to_csv(place / f"{name}.csv", index=False)
        run("fit", place / f"{name}.csv", "--formula", "C(sex)", "--features", ",".join(FEATURES), "-k", 0, "-o",
            place / name, "-q")  # fmt: skip
    run("merge", place / "one", place / "two", "-o", place / "both")
    merged, whole = rm.load(place / "both"), rm.load(place / "r")
    np.testing.assert_allclose(merged.coef_, whole.coef_, rtol=1e-10)
    assert "can't be merged" in run("merge", place / "m", place / "r", "-o", place / "x", code=1).stderr


def test_no_output_is_ever_written_over_what_is_read(run, place):
    before = (place / "p.csv").read_bytes(), (place / "r").read_bytes()
    run("transform", place / "m", place / "p.csv", "-o", place / "p.csv", "--force", code=1)
    run("merge", place / "r", place / "r", "-o", place / "r", "--force", code=1)
    assert ((place / "p.csv").read_bytes(), (place / "r").read_bytes()) == before
    run("transform", place / "m", place / "p.csv", "-o", place / "o.csv", "-q")
    assert "--force" in run("transform", place / "m", place / "p.csv", "-o", place / "o.csv", code=1).stderr


def test_what_is_no_model_is_told(run, place):
    for path, told in ((place / "p.csv", "isn't a model file"), (place / "absent", "no model file")):
        assert told in run("inspect", path, code=1).stderr


def test_help_begins_with_examples_and_completion_is_printed(run):
    for command in ("demo", "fit", "transform", "predict", "sample", "report", "inspect", "merge"):
        shown = run(command, "--help").stdout
        assert shown.index("Examples:") < shown.index("Options:")
        assert shown.splitlines()[2] == "Examples:"
    for shell in ("bash", "zsh", "fish"):
        assert "_RESIDMIX_COMPLETE" in run("--completion", shell).stdout
    assert "No such command" in run("fitt", code=2).stderr


def test_names_cannot_command_the_terminal(run, tmp_path, rng):
    table = pd.DataFrame({"\x1b[31mred": rng.normal(size=60), "b": rng.normal(size=60), "m": rng.normal(size=60)})
    table.to_parquet(tmp_path / "x.parquet")
    result = run("fit", tmp_path / "x.parquet", "--formula", "m", "-k", 1, "--exclude", "b")
    assert "\x1b" not in result.stdout + result.stderr


@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR"])
@pytest.mark.slow
def test_there_is_no_colour_anywhere(place, variable, monkeypatch):
    monkeypatch.setenv(variable, "1")
    command = [sys.executable, "-m", "residmix", "fit", "p.csv", "--formula", "C(sex)", "-k", "2", "--drop-missing"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "component" in done.stdout and done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_transform_writes_scores(run, place):
    run("fit", place / "p.csv", "--formula", "sex", "--scale", "-o", place / "norms")
    norms = rm.load(place / "norms")
    table = pd.read_csv(place / "p.csv")
    for option, method in (("--z", norms.z_scores), ("--centiles", norms.centiles)):
        run("transform", place / "norms", place / "p.csv", option, "-o", place / "scores.parquet", "--force")
        np.testing.assert_allclose(pd.read_parquet(place / "scores.parquet").to_numpy(), method(table))
