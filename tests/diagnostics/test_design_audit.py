"""A look at a design before the fit: overlaps against scipy's statistic, what stands out, and what doesn't."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose
from scipy.stats import ks_2samp

import residmix as rm
from residmix.cli.main import main


def people(seed=0, sizes=(60, 50, 40)):
    rng = np.random.default_rng(seed)
    site = np.repeat(["a", "b", "c"], sizes)
    n = len(site)
    return pd.DataFrame(
        {"site": site, "age": rng.uniform(20, 60, n).round(1), "group": rng.choice(["case", "control"], n)}
    )


def test_overlaps_are_one_less_the_distances_between_distributions():
    table = people()
    found = rm.design_audit(table, "site", preserve="age + group").overlaps.set_index(["level", "covariate"])["overlap"]
    for level in "abc":
        here = table["site"] == level
        assert_allclose(
            found[level, "age"], 1 - ks_2samp(table["age"][here], table["age"][~here]).statistic, atol=1e-12
        )
        shares = [np.mean(table["group"][rows] == "case") for rows in (here, ~here)]
        assert_allclose(found[level, "group"], 1 - abs(shares[0] - shares[1]), atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_sites_that_saw_the_same_people_pass(seed):
    audit = rm.design_audit(people(seed), "site", preserve="s(age) + group")
    assert audit.passed and "nothing stands out" in str(audit)


def test_a_site_of_the_old_one_of_cases_and_a_small_one_are_named():
    table = people(sizes=(60, 50, 6))
    table.loc[table["site"] == "a", "group"] = "case"
    table.loc[table["site"] == "b", "age"] += 45
    audit = rm.design_audit(table, "site", preserve="age + group")
    told = "\n".join(audit.problems)
    assert "site a: all 60 rows have group=case" in told
    assert "site b: age overlaps with the other levels' by 0.00 only" in told
    assert "site c: 6 rows, fewer than 10" in told
    assert len(audit.problems) == 3 and not audit.passed
    assert rm.design_audit(table, "site", preserve="age", fewest=5).problems == audit.problems[1:2]


def test_the_correlation_is_that_of_the_fit_and_aliased_effects_are_told():
    table = people()
    audit = rm.design_audit(table, "site", preserve="age + group")
    X = np.random.default_rng(1).normal(size=(len(table), 2))
    model = rm.Residualizer("site", preserve="age + group").fit(X, metadata=table)
    assert_allclose(audit.correlation, model.canonical_correlations_[0], atol=1e-9)
    table["group"] = np.where(table["site"] == "a", "case", "control")
    assert (
        "nearly collinear (canonical correlation 1.000)"
        in rm.design_audit(table, "site", preserve="group").problems[-1]
    )
    assert np.isnan(rm.design_audit(table, "site").correlation)


def test_gaps_and_files_are_read_and_the_command_has_a_status(tmp_path):
    table = people()
    table.loc[::9, "age"] = np.nan
    table.assign(x=1.0, y=np.arange(len(table)) ** 0.5).to_parquet(tmp_path / "t.parquet")
    whole = rm.design_audit(table, "site", preserve="age")
    again = rm.design_audit(rm.scan(tmp_path / "t.parquet"), "site", preserve="age")
    pd.testing.assert_frame_equal(again.overlaps, whole.overlaps)
    given = ["fit", str(tmp_path / "t.parquet"), "--formula", "site", "--preserve", "age", "--audit"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0 and "nothing stands out" in result.stdout
    table.loc[table["site"] == "b", "age"] += 45
    table.assign(x=1.0).to_parquet(tmp_path / "t.parquet")
    result = CliRunner().invoke(main, [*given, "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problems"]
    assert CliRunner().invoke(main, [given[0], given[1], "--audit"]).exit_code == 2
