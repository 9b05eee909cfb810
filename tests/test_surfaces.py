"""What estimators show of themselves: one call to a page, a picture, a page of text."""

import json

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.data import penguins

FEATURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


@pytest.fixture(scope="module")
def models():
    table = penguins()
    return {
        "mixture": rm.ResidualMixture(3, formula="C(sex)", features=FEATURES, random_state=0).fit(table),
        "residualizer": rm.Residualizer("C(sex)", features=FEATURES).fit(table),
        "plain": rm.GaussianMixture(2, random_state=0).fit(table[FEATURES]),
    }


@pytest.mark.parametrize("kind", ["mixture", "residualizer", "plain"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.slow
def test_every_model_writes_its_report(models, kind, rows, tmp_path):
    X = penguins() if rows else None
    path = models[kind].report(tmp_path / "r.html", X)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    models[kind].report(tmp_path / "r.json", X)
    told = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (told["model"], told["n_shown"] > 0) == (type(models[kind]).__name__, rows)


def test_plot_shows_components_or_levels(models):
    assert len(models["mixture"].plot().patches) == 3
    assert models["residualizer"].plot(penguins()).get_yticklabels()[0].get_text() == "female (165)"
    with pytest.raises(ValueError, match="needs X"):
        models["residualizer"].plot()


def test_summaries_are_text_that_notebooks_show(models):
    for model in models.values():
        summary = model.summary()
        assert repr(summary) == str(summary)
        assert summary._repr_html_().startswith("<pre")
    text = models["mixture"].summary()
    first = np.argmax(models["mixture"].weights_)
    assert text.splitlines()[3].split()[:2] == ["component", str(first)]
    assert f"{models['mixture'].weights_[first]:.3f}" in text


def test_notebooks_show_names_as_names(rng):
    table = pd.DataFrame({"<b>x</b>": rng.normal(size=60), "m": rng.normal(size=60)})
    summary = rm.Residualizer("m").fit(table).summary()._repr_html_()
    assert "&lt;b&gt;x" in summary
    shown = rm.association(table, formula="m", n_permutations=19)._repr_html_()
    assert "&lt;b&gt;x" in shown
    assert "<b>" not in summary + shown
