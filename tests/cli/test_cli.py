"""The command: the demo and the fit of one's own files work, and errors are one line."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import residmix as rm
from residmix.cli import main
from residmix.cli.shared.telling import as_options
from residmix.data import penguins


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run("demo", "--output-dir", folder)


def test_the_demo_shows_what_it_found_and_writes_report_and_model(demo):
    folder, result = demo
    assert "body_mass_g" in result.stdout
    assert "Agreement with species: adjusted Rand index 0.9" in result.stdout
    assert "residmix-demo" not in result.stdout
    model = rm.load(folder / "penguins.safetensors")
    assert model.predict(penguins()).shape == (333,)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 6
    assert "Adelie" in page


def test_the_report_is_one_offline_page_without_script(demo):
    page = (demo[0] / "report.html").read_text(encoding="utf-8").lower()
    assert "<script" not in page
    for attribute in ('src="http', 'href="http', "url(http", "@import"):
        assert attribute not in page
    assert len(page) < 1_000_000


@pytest.mark.slow
def test_existing_files_are_kept_unless_forced(demo):
    folder, _ = demo
    before = (folder / "report.html").read_bytes()
    result = run("demo", "--output-dir", folder, code=1)
    assert "exists" in result.stderr
    assert (folder / "report.html").read_bytes() == before
    run("demo", "--output-dir", folder, "--force")


@pytest.mark.slow
def test_the_demo_loads_nothing_that_takes_long_and_that_it_could_do_without(tmp_path):
    code = (
        "import sys\nfrom residmix.cli import main\n"
        f"main(['demo', '--quiet', '-o', {str(tmp_path)!r}], standalone_mode=False)\n"
        "print(sorted({'numba', 'torch', 'dask', 'matplotlib.pyplot', 'sklearn.neural_network'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def files(tmp_path):
    table = penguins()
    table.to_csv(tmp_path / "p.csv", index=False)
    table.to_parquet(tmp_path / "p.parquet", index=False)
    return tmp_path


OPTIONS = ("--formula", "C(sex)", "--features", "bill_length_mm,bill_depth_mm,flipper_length_mm,body_mass_g")


def test_csv_and_parquet_give_the_same_summary(files):
    first, second = (
        json.loads(run("fit", files / name, *OPTIONS, "--compare", "species", "--json").stdout)
        for name in ("p.csv", "p.parquet")
    )
    first.pop("command"), second.pop("command")
    assert first == second
    assert first["reference"]["ari"] > 0.9


def test_fit_equals_the_library_call(files):
    run("fit", files / "p.parquet", *OPTIONS, "-o", files / "m.safetensors", "--quiet")
    model = rm.ResidualMixture(3, formula="C(sex)", features=OPTIONS[3].split(","), random_state=0).fit(penguins())
    np.testing.assert_array_equal(
        rm.load(files / "m.safetensors").score_samples(penguins()), model.score_samples(penguins())
    )


@pytest.mark.slow
def test_joint_estimation_and_reports_work_from_the_command_line(files):
    options = (*OPTIONS, "--joint", "--family", "tied", "-k", 2)
    result = run("fit", files / "p.csv", *options, "--report", files / "r.html")
    assert "Log-likelihood per row" in result.stdout
    assert "estimated jointly with the mixture" in (files / "r.html").read_text(encoding="utf-8")


def test_missing_rows_are_left_out_only_when_told(tmp_path):
    penguins(complete=False).to_csv(tmp_path / "p.csv", index=False)
    result = run("fit", tmp_path / "p.csv", *OPTIONS, code=1)
    assert result.stderr.count("Error") == 1
    summary = json.loads(run("fit", tmp_path / "p.csv", *OPTIONS, "--drop-missing", "--json").stdout)
    assert summary["n_rows"] == 333


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "absent.csv", "--formula", "C(sex)"), "absent.csv"),
        (("fit", "{}/p.csv", "--formula", "C(sax)"), "did you mean 'sex'"),
        (("fit", "{}/p.csv", "--formula", "__import__('os').system('true')"), "formula"),
        (("fit", "{}/p.csv", "--formula", "C(sex)", "--features", "bill_lenght_mm"), "did you mean 'bill_length_mm'"),
    ],
)
def test_errors_are_short_and_clear(arguments, message, files):
    result = run(*(argument.format(files) for argument in arguments), code=1)
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") <= 3  # a formula is shown with a mark below it


@pytest.mark.slow
def test_hostile_names_are_escaped_in_the_report(tmp_path):
    rng = np.random.default_rng(0)
    name = "<script>alert(1)</script>"
    table = pd.DataFrame({name: rng.normal(size=80), "b": rng.normal(size=80), "m": rng.normal(size=80)})
    table.to_parquet(tmp_path / "x.parquet")
    run("fit", tmp_path / "x.parquet", "--formula", "m", "-k", 1, "--report", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_help_calls_the_command_by_its_name():
    assert run("--help").stdout.startswith("Usage: residmix [OPTIONS]")


def test_the_data_are_never_overwritten_even_when_forced(files):
    before = (files / "p.csv").read_bytes()
    for option in ("--output", "--report"):
        result = run("fit", files / "p.csv", *OPTIONS, option, files / "p.csv", "--force", code=1)
        assert "is one of the input files" in result.stderr
    assert (files / "p.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "{}/none/m"), "the folder '{}/none' doesn't exist"),
        (("--report", "{}/none/r.html"), "the folder '{}/none' doesn't exist"),
        (("-o", "{}/both", "--report", "{}/both"), "--output and --report are both '{}/both'"),
        (("--compare", "speces"), "unknown column 'speces' in {}/p.csv - did you mean 'species'?"),
    ],
)
def test_what_cannot_be_written_or_compared_is_told_before_the_fit(options, message, files, monkeypatch):
    monkeypatch.setattr(rm.ResidualMixture, "fit", lambda *args, **kwargs: pytest.fail("fitted"))
    result = run("fit", files / "p.csv", *OPTIONS, *(option.format(files) for option in options), code=1)
    assert message.format(files) in result.stderr


@pytest.mark.parametrize("option", ["-o", "--report", "--residuals", "--labels"])
def test_a_folder_that_is_read_only_is_told_before_the_fit(option, files, monkeypatch):
    monkeypatch.setattr(rm.ResidualMixture, "fit", lambda *args, **kwargs: pytest.fail("fitted"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    ending = {"--report": "html"}.get(option, "csv")
    result = run("fit", files / "p.csv", *OPTIONS, option, files / f"new.{ending}", code=1)
    assert f"the folder '{files}' is read-only; use a name in another folder" in result.stderr


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"[a]": rng.normal(size=80), "site": ["x", "[/y]"] * 40, "group": ["[u]", "[/v]"] * 40})
    table.to_parquet(tmp_path / "x.parquet")
    shown = run("fit", tmp_path / "x.parquet", "--formula", "site", "-k", 1, "--compare", "group").stdout
    assert all(shown.count(name) for name in ("[a]", "[u]", "[/v]"))


def test_warnings_are_one_line_each_and_quiet_means_quiet(files):
    table = penguins()
    table.loc[0, "sex"] = "unsure"
    table.to_csv(files / "q.csv", index=False)
    options = (files / "q.csv", "--formula", "C(sex)", "--features", "bill_length_mm,body_mass_g", "-k", 1)
    told = [line for line in run("fit", *options).stderr.splitlines() if "Warning" in line]
    assert len(told) == 1
    assert told[0].startswith("Warning: too few rows to estimate the effect of C(sex)=unsure (1 row)")
    assert run("fit", *options, "--quiet").stderr == ""


def test_missing_values_are_told_with_the_option_that_helps(tmp_path):
    penguins(complete=False).to_csv(tmp_path / "p.csv", index=False)
    for formula in ("C(sex)", "C(species)"):
        result = run("fit", tmp_path / "p.csv", "--formula", formula, *OPTIONS[2:], code=1)
        assert "--drop-missing leaves such rows out" in result.stderr
        assert "missing=" not in result.stderr
    features = run("fit", tmp_path / "p.csv", "--formula", "C(island)", *OPTIONS[2:], code=1).stderr
    assert "--drop-missing leaves such rows out, --missing em keeps them" in features
    run("fit", tmp_path / "p.csv", "--formula", "C(island)", *OPTIONS[2:], "--missing", "em")


def test_row_numbers_under_an_empty_heading_are_no_feature(tmp_path):
    penguins().drop(columns="year").to_csv(tmp_path / "p.csv")
    summary = json.loads(run("fit", tmp_path / "p.csv", "--formula", "C(sex)", "--json").stdout)
    assert summary["feature_names"] == OPTIONS[3].split(",")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "Expected n_samples >= n_components but got n_components = 500, n_samples = 200",
            "-k 500 asks for more components than there are rows (200); use a smaller -k",
        ),
        ("covariance= needs scale=True; set it, or leave covariance= out", "--covariances needs --scale; set it, or "
         "leave --covariances out"),
        ("or shrink their effects (shrinkage=)", "or shrink their effects (--shrinkage)"),
        ('try covariance="shrunk".', "try --covariances shrunk."),
    ],
)  # fmt: skip
def test_remedies_are_options_of_the_command(message, told):
    assert as_options(message) == told
