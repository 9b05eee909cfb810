"""Four people get from their table to a report worth showing in three commands; errors on the way name the remedy."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest


def remedy(result):
    """Return the option that an error names, as it is typed."""
    found = re.search(r"--(?:thousands|decimal|na-values) '?[^' ]+'?|--drop-missing", result.stderr)
    assert found, result.stderr
    return shlex.split(found[0])


def page_of(path):
    page = Path(path).read_text(encoding="utf-8")
    assert len(page.encode()) < 1_000_000
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|url\(["']?http|@import""", page)
    return page


@pytest.mark.slow
def test_a_neuroimager_with_numbered_sites_a_numeric_sex_and_thousands_separators(at, tables):
    truth = tables.scans("scans.csv")
    asked = ("fit", "scans.csv", "--formula", "C(site) + age", "--preserve", "C(diagnosis) + C(sex)")
    refused = at(*asked, code=1)
    assert "column 'v07' holds numbers with separators of thousands" in refused.stderr
    result = at(*asked, *remedy(refused), "-o", "m.safetensors", "--report", "scans.html", "--json")
    summary = json.loads(result.stdout)
    assert summary["n_rows"] == 900
    assert "site and age explained" in summary["verdict"]["headline"]
    left_out = next(note for note in summary["notes"] if note["kind"] == "left-out-columns")["figures"]["left_out"]
    assert left_out["subject_id"] == "an identifier"
    assert left_out["comment"] == "text"
    assert {"sex", "diagnosis", "age", "site"}.isdisjoint({*summary["feature_names"], *left_out})
    page = page_of("scans.html")
    assert "5 (odd)" in page  # the scanner that went wrong
    assert any(alert["kind"] == "odd-level" and alert["figures"]["level"] == "5" for alert in summary["alerts"])
    at("transform", "m.safetensors", "scans.csv", *remedy(refused), "-o", "clean.csv")
    clean = pd.read_csv("clean.csv")
    assert len(clean) == 900
    means = clean.groupby(truth["site"]).mean()
    assert np.abs(means.to_numpy()).max() < 0.35 * clean.to_numpy().std()


@pytest.mark.slow
def test_a_neuroimager_harmonizes_in_one_command(at, tables):
    tables.scans("scans.csv")
    at("fit", "scans.csv", "--formula", "C(site)", "--preserve", "age + C(sex) + C(diagnosis)", "--shrinkage", "eb",
       "--scale", "--thousands", ",", "--residuals", "clean.parquet", "--report", "r.html")  # fmt: skip
    clean = pd.read_parquet("clean.parquet")
    spread = clean.groupby(pd.read_csv("scans.csv")["site"]).std()
    assert (spread.max() / spread.min()).max() < 1.6
    assert "empirical Bayes" in page_of("r.html")


@pytest.mark.slow
def test_a_biologist_with_an_h5ad_file(at, tables):
    pytest.importorskip("anndata", reason="reading .h5ad files needs the extra residmix[anndata]")
    import anndata

    adata = tables.cells("cells.h5ad")
    first = at("fit", "cells.h5ad", "--formula", "C(batch)")
    assert "--basis X_pca" in first.stdout
    result = at("fit", "cells.h5ad", "--formula", "C(batch)", "--basis", "X_pca", "-k", 3, "--compare", "kind", "-o",
                "m.safetensors", "--report", "cells.html", "--json")  # fmt: skip
    summary = json.loads(result.stdout)
    assert summary["feature_names"] == [f"X_pca_{j}" for j in range(10)]
    assert summary["reference"]["ari"] > 0.95
    page_of("cells.html")
    at("predict", "m.safetensors", "cells.h5ad", "--basis", "X_pca", "-o", "labelled.h5ad")
    labelled = anndata.read_h5ad("labelled.h5ad")
    assert labelled.shape == adata.shape
    assert labelled.obs["residmix"].nunique() == 3


def test_a_biologist_takes_the_batch_out_of_counts(at, tables):
    pytest.importorskip("anndata", reason="reading .h5ad files needs the extra residmix[anndata]")
    import anndata

    tables.cells("cells.h5ad")
    at("fit", "cells.h5ad", "--formula", "C(batch)", "-k", 0, "-o", "m.safetensors")
    at("transform", "m.safetensors", "cells.h5ad", "-o", "clean.h5ad")
    clean = anndata.read_h5ad("clean.h5ad")
    residual = pd.DataFrame(np.asarray(clean.layers["residual"]))
    assert (
        np.abs(residual.groupby(clean.obs["batch"].to_numpy()).mean().to_numpy()).max() < 1e-5
    )  # counts, and so residuals, are float32


@pytest.mark.slow
def test_a_survey_with_missing_answers_and_a_name_with_a_space(at, tables):
    tables.survey("survey.csv")
    refused = at("fit", "survey.csv", "--formula", "C(country) + Age (years)", code=1)
    named = re.search(r"backticks: (`[^`]+`)", refused.stderr)[1]
    refused = at("fit", "survey.csv", "--formula", f"C(country) + {named}", "-k", 2, code=1)
    result = at("fit", "survey.csv", "--formula", f"C(country) + {named}", "-k", 2, *remedy(refused), "--report",
                "s.html", "--json")  # fmt: skip
    summary = json.loads(result.stdout)
    (dropped,) = [alert for alert in summary["alerts"] if alert["kind"] == "dropped-rows"]
    assert 0.38 < dropped["figures"]["dropped"] / 1500 < 0.46
    assert "left out for missing values" in result.stderr
    assert set(dropped["figures"]["missing"]) == {f"q{j}" for j in range(1, 9)}
    assert min(component["weight"] for component in summary["components"]) > 0.4
    assert "Age (years)" in page_of("s.html")


@pytest.mark.slow
def test_an_engineer_with_embeddings_in_parquet(at, tables):
    _, source, topic = tables.embeddings("docs.parquet")
    result = at("fit", "docs.parquet", "--formula", "C(source)", "--features", "embedding*", "-k", "1:4", "--residuals",
                "clean.parquet", "--labels", "topics.parquet", "--report", "docs.html", "--json")  # fmt: skip
    summary = json.loads(result.stdout)
    assert summary["feature_names"] == [f"embedding[{j}]" for j in range(32)]
    assert "a linear probe finds no association" in summary["verdict"]["headline"] or (
        "find no association" in summary["verdict"]["headline"]
    )
    assert len(summary["selection"]) == 4
    clean = pd.read_parquet("clean.parquet")
    assert clean.shape == (2000, 32)
    assert np.abs(clean.groupby(source).mean().to_numpy()).max() < 1e-5  # embeddings are float32
    assert len(pd.read_parquet("topics.parquet")) == len(topic)
    page_of("docs.html")
