"""`residmix fit`: the model first, then what else was asked for; what is left fails a check."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.cli.shared.telling import as_options
from residmix.data import penguins

FEATURES = "bill_length_mm,bill_depth_mm,flipper_length_mm,body_mass_g"


@pytest.fixture
def file(tmp_path):
    penguins().to_parquet(tmp_path / "p.parquet", index=False)
    return tmp_path / "p.parquet"


def test_residuals_and_labels_are_those_of_the_model_in_the_order_of_the_rows(run, file, tmp_path):
    run("fit", file, "--formula", "C(sex)", "--features", FEATURES, "-o", tmp_path / "m", "--residuals",
        tmp_path / "r.parquet", "--labels", tmp_path / "l.csv", "-q")  # fmt: skip
    model = rm.load(tmp_path / "m")
    residuals = pd.read_parquet(tmp_path / "r.parquet")
    assert list(residuals) == FEATURES.split(",")
    np.testing.assert_array_equal(residuals.to_numpy(), model.residuals(penguins()))
    np.testing.assert_array_equal(pd.read_csv(tmp_path / "l.csv")["component"], model.predict(penguins()))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".arrow", ".feather", ".parquet"])
def test_residuals_are_written_in_the_kind_that_the_ending_says(run, file, tmp_path, ending):
    out = tmp_path / f"r{ending}"
    run("fit", file, "--formula", "C(sex)", "--features", FEATURES, "-k", 0, "--residuals", out, "-q")
    read = {".tsv": lambda p: pd.read_csv(p, sep="\t"), ".parquet": pd.read_parquet, ".arrow": pd.read_feather,
            ".feather": pd.read_feather}.get(ending, pd.read_csv)  # fmt: skip
    expected = rm.Residualizer("C(sex)", features=FEATURES.split(",")).fit_transform(penguins())
    np.testing.assert_allclose(read(out).to_numpy(), expected, rtol=1e-12, atol=1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.parquet", out.name]


def test_what_probes_take_is_guessed_by_kinds_of_columns_and_then_known(run, file, monkeypatch):
    from residmix.cli import fit
    from residmix.cli.shared import stages

    guessed, expected = [], []
    monkeypatch.setattr(fit, "probing", lambda d, levels: guessed.append(list(levels)) or stages.probing(d, levels))
    monkeypatch.setattr("residmix.rows.course.Course.expect", lambda way, name, seconds: expected.append(seconds))
    run("fit", file, "--formula", "C(sex) + year", "--features", FEATURES, "-k", 0, "--fail-if-left", 1.0, "-q")
    assert guessed == [[fit.TYPICAL_LEVELS, 0]]
    assert expected == [stages.probing(4, [fit.TYPICAL_LEVELS, 0]), stages.probing(4, [2, 0])]


def test_data_go_to_standard_output_and_nothing_else_does(run, file):
    result = run("fit", file, "--formula", "C(sex)", "--features", FEATURES, "-k", 0, "--residuals", "-")
    lines = result.stdout.splitlines()
    assert len(lines) == 334
    assert lines[0].replace('"', "") == FEATURES
    assert "fitted in" in result.stderr


def test_data_come_from_standard_input(run, file):
    text = penguins().to_csv(index=False)
    summary = json.loads(run("fit", "-", "--formula", "C(sex)", "--features", FEATURES, "--json", input=text).stdout)
    assert summary["n_rows"] == 333
    assert "nothing came" in run("fit", "-", "--formula", "C(sex)", code=1, input="").stderr


@pytest.mark.slow
def test_preserved_columns_and_dollars_in_names_make_a_report_and_the_model_is_there_anyway(run, tmp_path, monkeypatch):
    table = penguins().rename(columns={"body_mass_g": r"cost $\frac{a}$"})
    table.to_csv(tmp_path / "p.csv", index=False)
    arguments = ("fit", tmp_path / "p.csv", "--formula", "C(sex)", "--preserve", "C(species)", "--exclude", "year",
                 "-o", tmp_path / "m", "--report", tmp_path / "r.html", "-q")  # fmt: skip
    run(*arguments)
    assert r"cost $\frac{a}$" in (tmp_path / "r.html").read_text(encoding="utf-8")
    monkeypatch.setattr("residmix.report.build.page", lambda *args: (_ for _ in ()).throw(ValueError("no page")))
    (tmp_path / "m").unlink()
    result = run(*arguments, "--force", code=1)
    assert result.stderr == "Error: no page\n"
    assert rm.load(tmp_path / "m").preserve == "C(species)"


@pytest.mark.slow
def test_notes_are_in_the_model_file_json_and_report_alike(run, tmp_path):
    penguins(complete=False).to_csv(tmp_path / "p.csv", index=False)
    result = run("fit", tmp_path / "p.csv", "--formula", "C(sex)", "--drop-missing", "-k", 1, "--json", "-o",
                 tmp_path / "m", "--report", tmp_path / "r.html")  # fmt: skip
    notes = json.loads(result.stdout)["notes"]
    assert {"left-out-columns", "dropped-rows"} <= {note["kind"] for note in notes}
    assert rm.load(tmp_path / "m").notes_ == notes
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "11 of 344 rows" in page
    assert "species (text)" in page
    again = json.loads(run("inspect", tmp_path / "m", "--json").stdout)["notes"]
    assert again == notes


@pytest.fixture
def spread(tmp_path, rng):
    """Two sites that differ in spread, which least squares leaves: a forest tells them apart."""
    site = np.repeat(["a", "b"], 250)
    x = rng.normal(size=(500, 4)) * np.where(site == "a", 1.0, 4.0)[:, None]
    table = pd.DataFrame(x, columns=list("wxyz")).assign(site=site)
    table.to_parquet(tmp_path / "s.parquet")
    return tmp_path / "s.parquet"


@pytest.mark.slow
def test_what_a_held_out_probe_still_reads_is_in_the_first_line_the_alerts_and_the_exit_status(run, spread, tmp_path):
    report = ("--report", tmp_path / "r.html", "--force")
    result = run("fit", spread, "--formula", "site", "-k", 1, *report)
    assert "a forest still predicts site (AUC .9" in result.stdout.splitlines()[0]
    assert "--scale" in result.stdout.splitlines()[1]
    summary = json.loads(run("fit", spread, "--formula", "site", "-k", 1, "--json", *report).stdout)
    (alert,) = summary["alerts"]
    assert alert["kind"] == "still-there"
    assert alert["figures"]["after"] > 0.9
    assert "AUC" in run("fit", spread, "--formula", "site", "-k", 1, "--fail-if-left", 0.7, "-q", code=1).stderr
    passed = run("fit", spread, "--formula", "site", "--scale", "--fail-if-left", 0.7)
    assert "no held-out probe has an AUC above 0.7" in passed.stderr


@pytest.mark.slow
def test_a_linear_probe_that_succeeds_is_said_to(run, tmp_path, rng):
    z, w = rng.normal(size=(2, 600))
    table = pd.DataFrame({"x": w, "y": z * w + 0.1 * rng.normal(size=600), "u": z**3, "z": z})
    table["u2"] = np.abs(z) * 3
    table["high"] = np.where(z**2 > 1, "yes", "no")  # u2 tells it, the formula takes out a line of z only
    table.drop(columns="high").to_parquet(tmp_path / "t.parquet")
    result = run("fit", tmp_path / "t.parquet", "--formula", "z", "-k", 1, "--report", tmp_path / "r.html")
    assert "forest still predicts z" in result.stdout.splitlines()[0]


def test_scale_and_shrinkage_harmonize_without_a_mixture(run, spread, tmp_path):
    run("fit", spread, "--formula", "site", "--scale", "--shrinkage", "eb", "-o", tmp_path / "m", "-q")
    assert type(rm.load(tmp_path / "m")).__name__ == "Residualizer"
    message = run("fit", spread, "--formula", "site", "--scale", "-k", 2, code=2).stderr
    assert "residmix fit clean.parquet --formula 1 -k 2" in message


def test_scale_by_names_what_the_spread_depends_on(run, spread, tmp_path, rng):
    table = pd.read_parquet(spread).assign(age=rng.uniform(20, 60, 500))
    table.to_parquet(tmp_path / "t.parquet")
    given = ("fit", tmp_path / "t.parquet", "--formula", "site", "--preserve", "age", "--shrinkage", "eb")
    run(*given, "--scale-by", "site + age", "--residuals", tmp_path / "r.parquet", "-q")
    model = rm.Residualizer("site", preserve="age", scale="site + age", shrinkage="eb")
    residuals = pd.read_parquet(tmp_path / "r.parquet")[list("wxyz")].to_numpy()
    np.testing.assert_allclose(residuals, model.fit_transform(table), atol=1e-12)
    message = run(*given, "--scale-by", "age", code=1).stderr
    assert "--scale-by 'age' must name" in message or "--scale-by 'age' names no term" in message
    assert "leave one of them out" in run(*given, "--scale", "--scale-by", "site", code=2).stderr


def test_weights_depend_on_terms_of_their_own(run, file, tmp_path):
    given = ("fit", file, "--formula", "C(sex)", "--gating", "C(island)", "-k", 2, "--family", "EEE", "--seed", 0)
    summary = json.loads(run(*given, "-o", tmp_path / "m", "--report", tmp_path / "r.html", "--json").stdout)
    assert (summary["gating"], summary["estimation"]) == ("C(island)", "joint")
    assert "weights depending on C(island)" in summary["methods"]["text"]
    assert "<dt>proportions of components by</dt>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    model = rm.load(tmp_path / "m")
    assert model.gate_coef_.any(axis=0).tolist() == [False, True, True]
    run("predict", tmp_path / "m", file, "-o", tmp_path / "p.csv", "-q")
    run("sample", tmp_path / "m", file, "-o", tmp_path / "d.csv", "-q")
    assert len(pd.read_csv(tmp_path / "d.csv")) == len(pd.read_csv(tmp_path / "p.csv")) == 333
    assert "island" in run("sample", tmp_path / "m", "-o", tmp_path / "e.csv", code=2).stderr
    assert "--gating (columns of" in run("fit", file, "--formula", "C(sex)", "--gating", "iland", code=1).stderr
    assert "--gating" in run("fit", file, "--formula", "C(sex)", "--gating", "island", "-k", 0, code=2).stderr
    told = run(*given, "--stepwise", "--features", FEATURES, "-o", tmp_path / "s").stderr
    assert "weights by C(island)" in told


def test_the_command_that_an_error_names_works(run, spread, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", spread, "--formula", "site", "--scale", "--residuals", "clean.parquet", "-q")
    run("fit", "clean.parquet", "--formula", 1, "-k", 2)


@pytest.mark.slow
def test_the_best_of_several_sizes_and_families_is_kept_and_the_search_shown(run, file, tmp_path):
    result = run("fit", file, "--formula", "C(sex)", "--features", FEATURES, "-k", "1:4", "--family", "full,EEE",
                 "--report", tmp_path / "r.html", "--json")  # fmt: skip
    summary = json.loads(result.stdout)
    assert len(summary["selection"]) == 8
    best = min(summary["selection"], key=lambda row: row["bic"])
    assert (len(summary["components"]), summary["covariance_type"]) == (best["n_components"], best["covariance_type"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "The search: 8 fits" in page
    for wrong in ("0:3", "3:1", "1:", "x", "2,,3", "-1"):
        run("fit", file, "--formula", "C(sex)", "-k", wrong, code=2)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(run, file, tmp_path, monkeypatch):
    monkeypatch.setattr(rm.ResidualMixture, "fit", lambda *args, **kwargs: pytest.fail("fitted"))
    plan = json.loads(run("fit", file, "--formula", "C(sex)", "-o", tmp_path / "m", "--dry-run", "--json").stdout)
    assert plan["rows"] == 333
    assert plan["removed"] == ["sex"]
    assert plan["left_out"] == {"species": "text", "island": "text"}
    assert not (tmp_path / "m").exists()
    assert "rows" in run("fit", file, "--formula", "C(sex)", "--dry-run").stdout


def test_a_toml_file_holds_options_and_the_command_line_wins(run, file, tmp_path):
    config = tmp_path / "fit.toml"
    config.write_text('formula = "C(sex)"\nfeatures = ["bill_length_mm", "body_mass_g"]\ncomponents = 2\n')
    summary = json.loads(run("fit", file, "--config", config, "--json").stdout)
    assert (len(summary["components"]), summary["feature_names"]) == (2, ["bill_length_mm", "body_mass_g"])
    summary = json.loads(run("fit", file, "--config", config, "-k", 1, "--json").stdout)
    assert len(summary["components"]) == 1
    config.write_text('[fit]\nformla = "C(sex)"\n')
    assert "did you mean 'formula'" in run("fit", file, "--config", config, code=2).stderr
    config.write_text("formula = \n")
    assert "can't read" in run("fit", file, "--config", config, code=2).stderr


def test_a_checkpoint_is_only_gone_on_from_when_told(run, file, tmp_path):
    kept = tmp_path / "c"
    kept.write_bytes(b"something")
    options = ("fit", file, "--formula", "C(sex)", "--features", FEATURES, "--checkpoint", kept)
    assert "use --resume to continue from it" in run(*options, code=1).stderr
    assert kept.read_bytes() == b"something"
    kept.unlink()
    assert f"there is no checkpoint {str(kept)!r} yet" in run(*options, "--resume").stderr
    assert "--resume needs --checkpoint" in run("fit", file, "--formula", "C(sex)", "--resume", code=2).stderr


@pytest.mark.slow
def test_ctrl_c_is_status_130_and_the_checkpoint_leads_to_the_same_model(tmp_path, rng):
    x = np.concatenate([rng.normal(size=(1500, 6)), rng.normal(1.2, 1, size=(1500, 6))])
    pd.DataFrame(x, columns=list("abcdef")).to_parquet(tmp_path / "x.parquet")
    stop = (
        "import sys, residmix.em.observers as o\n"
        "go = o.FitProgress.__call__\n"
        "def stop(self, state):\n    go(self, state)\n    if state.iteration >= 3: raise KeyboardInterrupt\n"
        "o.FitProgress.__call__ = stop\n"
        "sys.argv[0] = 'residmix'\nfrom residmix.cli import main\nmain()\n"
    )
    options = ["fit", "x.parquet", "--formula", "1", "-k", "3", "--checkpoint", "c", "-q"]
    code = "import sys\nfrom residmix.cli import main\nmain()\n"

    def call(script, *more):
        command = [sys.executable, "-c", script, *options, *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)

    stopped = call(stop, "-o", "m1")
    assert stopped.returncode == 130, stopped.stderr
    assert (tmp_path / "c").exists() == ("--resume" in stopped.stderr)
    assert not (tmp_path / "m1").exists()
    assert call(code, "--resume", "-o", "m1").returncode == 0
    (tmp_path / "c").unlink(missing_ok=True)
    assert call(code, "-o", "m2").returncode == 0
    np.testing.assert_array_equal(rm.load(tmp_path / "m1").means_, rm.load(tmp_path / "m2").means_)


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--preserve", "C(species)"), 2, "need --formula"),
        (("--fail-if-left", 0.6), 2, "needs --formula"),
        (("-k", 0), 2, "nothing to do"),
        (("--formula", "C(sex)", "-k", "many"), 2, "not a number of components"),
        (("--formula", "C(sex)", "--layer", "raw"), 2, "is for .h5ad files"),
        (("--formula", "C(sex)", "--labels", "{}/l.txt"), 1, "must end in .parquet"),
        (("--formula", "C(sex)", "-k", 0, "--labels", "{}/l.csv"), 2, "needs components; set -k"),
        (("--formula", "C(sex)", "--search", "near"), 2, "--search must be all, nearest or a number"),
        (("--formula", "C(sex)", "--search", 2, "--noise"), 1, "doesn't work with --noise"),
        (("--formula", "C(sex)", "--family", "fulll"), 1, "did you mean 'full'"),
        (("--formula", "species", "--joint", "--preserve", "C(sex)"), 1, "joint"),
    ],
)
def test_usage_errors_are_status_2_and_others_1(run, file, tmp_path, options, code, told):
    given = [str(option).format(tmp_path) for option in options]
    assert told in run("fit", file, *given, code=code).stderr


def test_wrong_values_are_set_aside_told_of_and_written(run, tmp_path):
    table = penguins().drop(columns=["year"])
    table.loc[:9, "body_mass_g"] /= 10
    table.to_parquet(tmp_path / "p.parquet", index=False)
    given = ("fit", tmp_path / "p.parquet", "--formula", "C(sex)", "--features", FEATURES, "--family", "tied", "-q")
    run(*given, "--cells", 0.2, "-o", tmp_path / "m", "--report", tmp_path / "r.html")
    run("predict", tmp_path / "m", tmp_path / "p.parquet", "--cells", "-o", tmp_path / "w.parquet", "-q")
    wrong = pd.read_parquet(tmp_path / "w.parquet")
    assert list(wrong) == FEATURES.split(",") and wrong["body_mass_g"][:10].all() and wrong.to_numpy().mean() < 0.03
    np.testing.assert_array_equal(wrong, rm.load(tmp_path / "m").outlier_cells(table))
    shown = (tmp_path / "r.html").read_text()
    assert "Values set aside" in shown and "at most 20 % of each feature" in shown and "body_mass_g (3" in shown
    run(*given, "-o", tmp_path / "plain")
    told = run("predict", tmp_path / "plain", tmp_path / "p.parquet", "--cells", "-o", tmp_path / "x.csv", code=1)
    assert "fitted with --cells 0.25" in told.stderr


def test_near_components_are_asked_for_by_number(run, file, tmp_path):
    given = ("fit", file, "--formula", "C(sex)", "--features", FEATURES, "-k", 4, "--search", 3, "-q")
    run(*given, "-o", tmp_path / "m", "--report", tmp_path / "r.html")
    model = rm.load(tmp_path / "m")
    assert model.search == 3 and model.lower_bound_ <= model.score(pd.read_parquet(file))
    assert "with the components near it only" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_effects_by_component_are_asked_for_by_name(run, file, tmp_path):
    run("fit", file, "--formula", "C(sex)", "--features", FEATURES, "--effects", "by-component", "-k", 2, "--family",
        "EEE", "-o", tmp_path / "m", "--report", tmp_path / "r.html", "-q")  # fmt: skip
    model = rm.load(tmp_path / "m")
    assert model.coef_.shape == (2, 1, 4) and model.gating == "constant" and model.notes_ == []
    assert "<h3>Effects by component</h3>" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_an_eraser_is_fitted_with_its_certificate_and_a_model_that_transforms(run, tmp_path):
    rng = np.random.default_rng(0)
    site = rng.integers(2, size=1500)
    x = rng.normal(size=(1500, 2)) * np.where(site == 1, 2.5, 1.0)[:, None]
    table = pd.DataFrame(x, columns=["x", "y"]).assign(site=np.where(site == 1, "B", "A"))
    file = tmp_path / "t.parquet"
    table.to_parquet(file)
    out = ("-o", tmp_path / "m", "--residuals", tmp_path / "r.parquet", "--report", tmp_path / "r.html")
    result = run("fit", file, "--formula", "C(site)", "--erase", "full", "-k", 1, "--reference", "A", *out,
                 "--fail-if-left", 0.6)  # fmt: skip
    assert "passed: full, 1 component," in result.stdout and "the certificate passed" in result.stdout
    expected = rm.Eraser("C(site)", features=["x", "y"], method="full", n_components=1, reference={"site": "A"})
    expected = expected.fit(table).transform(table)
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "r.parquet").to_numpy(), expected)
    np.testing.assert_allclose(expected[site == 0], x[site == 0], atol=1e-8)
    run("transform", tmp_path / "m", file, "-o", tmp_path / "again.parquet")
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "again.parquet").to_numpy(), expected)
    assert "certificate    passed" in run("inspect", tmp_path / "m").stdout
    summary = json.loads(run("report", tmp_path / "m", file, "-o", tmp_path / "r.json", "--json").stdout)
    assert summary["certificate"]["method"] == "full"


def test_all_commands_print_a_certificate_line_by_line(run, tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(200, 2)), columns=["x", "y"]).assign(site=["A", "B"] * 100)
    table.to_parquet(tmp_path / "t.parquet")
    options = ("--formula", "C(site)", "--erase", "spread", "-o", tmp_path / "m")
    printed = [run("fit", tmp_path / "t.parquet", *options).stdout, run("inspect", tmp_path / "m").stdout,
               run("report", tmp_path / "m", tmp_path / "t.parquet", "-o", tmp_path / "r.html").stdout]  # fmt: skip
    made = str(rm.load(tmp_path / "m").certificate_)
    assert "\n" in made and all(made in text for text in printed)


def test_options_that_an_eraser_has_no_use_for_are_refused(run, file):
    def refused(*options):
        return run("fit", file, "--features", FEATURES, *options, code=2).stderr

    assert "--erase needs --formula" in refused("--erase", "full")
    assert "--scale doesn't work with --erase" in refused("--formula", "sex", "--erase", "full", "--scale")
    assert "-k 3 doesn't work with --erase linear" in refused("--formula", "sex", "--erase", "linear", "-k", 3)
    assert "needs a single number of components" in refused("--formula", "sex", "--erase", "full", "-k", "1:3")
    assert "sex=...,year=..." in refused("--formula", "sex + year", "--erase", "full", "--reference", "male")


def test_terms_are_chosen_step_by_step(run, file, tmp_path):
    done = run("fit", file, "--formula", "C(sex) + year", "--features", FEATURES, "-k", 1, "--stepwise", "-o",
               tmp_path / "m")  # fmt: skip
    model = rm.load(tmp_path / "m")
    found = model.selection_
    assert set(found["formula"]) >= {"C(sex) + year", "C(sex)", "year"}
    assert model.formula == found["formula"][found["bic"].index(min(found["bic"]))]
    assert f"models: {model.formula}, constant weights, shared effects" in done.stderr


def test_what_is_added_to_variances_is_asked_for_and_errors_name_the_option(run, file, tmp_path):
    options = ("fit", file, "--formula", "C(sex)", "--features", FEATURES)
    run(*options, "--reg-covar", 2.5, "-o", tmp_path / "m", "-q")
    assert rm.load(tmp_path / "m").reg_covar == 2.5
    assert "--reg-covar needs components" in run(*options, "-k", 0, "--reg-covar", 1, code=2).stderr
    assert as_options("use fewer components, or raise reg_covar") == "use fewer components, or raise --reg-covar"
    assert as_options("try splines, or an Eraser.") == "try splines, or --erase full."


@pytest.mark.parametrize("data", ["csv", "parquet"])
def test_one_line_tells_the_time_left_of_the_whole_command_and_results_are_the_same(run, tmp_path, monkeypatch, data):
    table = penguins()
    path = tmp_path / f"p.{data}"
    table.to_csv(path, index=False) if data == "csv" else table.to_parquet(path)
    options = ("--formula", "C(sex)", "--features", FEATURES, "-k", 2)
    run("fit", path, *options, "-o", tmp_path / "m", "--residuals", tmp_path / "r.csv", "--report", tmp_path / "r.json")
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    monkeypatch.setattr("residmix.rows.progress.PATIENCE", 0.0)
    told = run("fit", path, *options, "-o", tmp_path / "m2", "--residuals", tmp_path / "r2.csv", "--report",
               tmp_path / "r2.json").stderr  # fmt: skip
    assert (tmp_path / "m").read_bytes() == (tmp_path / "m2").read_bytes()
    assert (tmp_path / "r.csv").read_bytes() == (tmp_path / "r2.csv").read_bytes()
    same = [json.loads((tmp_path / name).read_text()) for name in ("r.json", "r2.json")]
    assert same[0]["association"] == same[1]["association"]
    assert "100%, about" in told
    shown = run("transform", tmp_path / "m", path, "-o", tmp_path / "c.csv").stderr.splitlines()
    assert len(shown) > 1 and not [line for line in shown if "of this step" in line]
    shown = run("report", tmp_path / "m", path, "-o", tmp_path / "c.html").stderr.splitlines()
    lines = [line for line in shown if "%, about" in line]
    assert len(lines) > 20 and all(line.endswith(" left") for line in lines)


def test_covariances_by_a_factor_are_asked_for(run, file, tmp_path):
    run("fit", file, "--formula", "C(sex)", "--features", FEATURES, "-k", 1, "--covariance-by", "sex", "-o",
        tmp_path / "m", "-q")  # fmt: skip
    assert rm.load(tmp_path / "m").group_covariances_.shape == (2, 1, 4, 4)
