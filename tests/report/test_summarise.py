"""Summaries: what they say is so, and has the form that the schema describes."""

import json
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.data import penguins
from residmix.errors import CertificateWarning
from residmix.report.gather import gather
from residmix.report.html import render
from residmix.report.summarise import summarise

FEATURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
SCHEMA = json.loads((files("residmix.report") / "schema.json").read_text(encoding="utf-8"))
KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
         "null": type(None)}  # fmt: skip


def check(value, schema, where="report"):
    """Check a value against the part of JSON Schema that ours is written in."""
    if "oneOf" in schema:
        errors = []
        for option in schema["oneOf"]:
            try:
                return check(value, option, where)
            except AssertionError as error:
                errors.append(str(error))
        raise AssertionError(f"{where}: {errors}")
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r}"
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        fits = [isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds]
        assert any(fits), f"{where} is {value!r}, not {kinds}"
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema["required"]) <= set(value), f"{where} lacks {set(schema['required']) - set(value)}"
        if schema.get("additionalProperties", True) is False:
            assert set(value) <= set(schema["properties"]), f"{where}: {set(value) - set(schema['properties'])}"
        for key, part in schema["properties"].items():
            if key in value:
                check(value[key], part, f"{where}.{key}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            check(item, schema.get("items", {}), f"{where}[{i}]")
    return None


def described(model, X=None, **options):
    summary = summarise(gather(model, X, **options))
    check(json.loads(json.dumps(summary, allow_nan=False)), SCHEMA)
    return summary


@pytest.fixture(scope="module")
def mixture():
    return rm.ResidualMixture(3, formula="C(sex)", features=FEATURES, random_state=0).fit(penguins())


@pytest.mark.parametrize("probes", [False, True])
@pytest.mark.slow
def test_every_kind_of_model_has_a_summary_of_the_published_form(mixture, probes):
    table = penguins()
    joint = rm.ResidualMixture(2, formula="C(island)", features=FEATURES, estimation="joint", gating="metadata",
                               random_state=0)  # fmt: skip
    models = [
        mixture,
        joint.fit(table),
        rm.Residualizer("C(sex) + I(year)", preserve="C(species)", features=FEATURES).fit(table),
        rm.Residualizer("C(sex)", scale=True, shrinkage="eb", features=FEATURES).fit(table),
    ]
    for model in models:
        described(model)
        described(model, table, probes=probes, reference="species")
    plain = rm.GaussianMixture(2, random_state=0).fit(table[FEATURES])
    described(plain)
    described(plain, table, reference="species", probes=probes)
    arrays = table[FEATURES].to_numpy(), (table["sex"] == "male").to_numpy(dtype=float)
    apart = rm.Residualizer().fit(arrays[0], metadata=arrays[1])
    described(apart, arrays[0], metadata=arrays[1], probes=probes)


def test_the_numbers_are_those_of_the_model(mixture):
    summary = described(mixture, penguins(), reference="species")
    residual = mixture.residuals(penguins())
    share = 1 - residual.var(axis=0) / penguins()[FEATURES].to_numpy().var(axis=0)
    assert [row["explained"] for row in summary["features"]] == pytest.approx(share)
    assert summary["explained"] == pytest.approx(share.mean())
    labels = mixture.predict(penguins())
    for component in summary["components"]:
        k = component["number"]
        assert component["rows"] == np.sum(labels == k)
        assert component["mean"] == pytest.approx(mixture.means_[k])
    weights = [component["weight"] for component in summary["components"]]
    assert weights == sorted(weights, reverse=True)
    table = np.array(summary["reference"]["table"])
    assert table.sum() == 333
    first = summary["components"][0]["number"]
    assert table[:, 0].tolist() == [
        int(np.sum((labels == first) & (penguins()["species"] == level))) for level in summary["reference"]["levels"]
    ]


@pytest.mark.slow
def test_curves_are_terms_with_their_degrees_of_freedom_and_a_picture(tmp_path):
    model = rm.Residualizer("sex + s(year, k=3) + s(bill_length_mm)", features=FEATURES[1:]).fit(penguins())
    rows = {row["name"]: row for row in described(model)["terms"]}
    for curve in ("s(year, k=3)", "s(bill_length_mm)"):
        assert rows[curve]["kind"] == "smooth"
        assert rows[curve]["columns"] == pytest.approx(model.edf_[curve].median(), abs=0.01)
    assert rows["sex"]["columns"] == 1
    page = (tmp_path / "page.html").as_posix()
    model.report(page, penguins())
    assert "The effect of s(bill_length_mm) on" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_terms_and_effects_are_those_of_the_tables():
    model = rm.Residualizer("C(sex)", preserve="C(species)", features=FEATURES).fit(penguins())
    summary = described(model)
    assert [(row["name"], row["preserved"]) for row in summary["terms"]] == [("C(sex)", False), ("C(species)", True)]
    tidy = model.tidy().set_index(["feature", "term"])
    for row in summary["effects"]:
        own = tidy.loc[(row["feature"], row["term"])]
        assert row["estimate"] == pytest.approx(own["estimate"])
        assert row["lower"] < row["estimate"] < row["upper"]
    assert not any(row["term"] == "Intercept" for row in summary["effects"])


@pytest.mark.slow
def test_the_odd_site_is_named_and_the_others_are_not(rng):
    site = np.repeat(list("abcdefgh"), 60)
    x = rng.normal(size=(480, 5)) + rng.normal(size=8).repeat(60)[:, None] * 0.3
    x[site == "d"] *= 4
    table = pd.DataFrame(x, columns=list("vwxyz")).assign(site=site)
    summary = described(rm.Residualizer("site").fit(table), table, probes=False)
    (levels,) = summary["levels"]
    assert [row["level"] for row in levels["levels"] if row["odd"]] == ["d"]
    assert max(row["shift_after"] for row in levels["levels"]) < 1e-10
    assert any(alert["kind"] == "odd-level" and alert["figures"]["level"] == "d" for alert in summary["alerts"])
    assert "odd-level" not in {
        alert["kind"]
        for alert in described(rm.Residualizer("site").fit(table[site != "d"]), table[site != "d"])["alerts"]
    }


def test_sites_whose_people_are_of_another_age_show_their_overlap(rng):
    site = np.repeat(list("abc"), 100)
    table = pd.DataFrame(rng.normal(size=(300, 3)), columns=list("xyz")).assign(site=site, age=rng.uniform(20, 60, 300))
    table.loc[table["site"] == "b", "age"] += 45
    summary = described(rm.Residualizer("site", preserve="age").fit(table), table, probes=False)
    shown = {row["level"]: row for row in summary["levels"][0]["levels"]}
    expected = rm.design_audit(table, "site", preserve="age").levels.set_index("level")["overlap"]
    assert {level: row["overlap"] for level, row in shown.items()} == pytest.approx(expected.to_dict())
    assert shown["b"]["overlap"] == 0.0 and shown["a"]["overlap"] > 0.1
    assert {row["overlap_of"] for row in shown.values()} == {"age"}
    page = render(summary, {})
    assert ">overlap<" in page and "<td>age</td>" in page
    (alone,) = described(rm.Residualizer("site").fit(table[[*"xyz", "site"]]), table, probes=False)["levels"]
    assert all(row["overlap"] is None for row in alone["levels"])


def test_pit_is_flat_for_the_right_model_and_not_for_a_wrong_one(rng):
    X = np.concatenate([rng.normal(-4, 1, (1000, 1)), rng.normal(4, 1, (1000, 1))])
    right, wrong = (rm.GaussianMixture(K, random_state=0).fit(X) for K in (2, 1))
    assert described(right, X)["fit"]["pit"]["ks"][0] < 0.03
    assert described(wrong, X)["fit"]["pit"]["ks"][0] > 0.1


def test_pit_of_a_gated_mixture_uses_the_weights_of_each_row(rng):
    site = np.repeat([0.0, 1.0], 1000)
    X = np.where(rng.random(2000) < np.where(site == 0, 0.9, 0.1), -4.0, 4.0)[:, None] + rng.normal(size=(2000, 1))
    model = rm.ResidualMixture(2, estimation="joint", gating="metadata", random_state=0).fit(X, metadata=site)
    from residmix.plots.pit import pit_values
    from residmix.plots.rows import rows_of

    values = pit_values(model, rows_of(model, X, site))
    for s in (0.0, 1.0):
        assert np.abs(np.sort(values[site == s, 0]) - np.linspace(0, 1, 1000)).max() < 0.06


def test_pit_knows_covariances_by_level(rng):
    site = np.repeat(["a", "b"], 1000)
    X = rng.normal(size=(2000, 1)) * np.where(site == "a", 0.3, 3.0)[:, None]
    table = pd.DataFrame({"x": X[:, 0], "site": site})
    model = rm.ResidualMixture(1, formula="site", features=["x"], covariance_by="site", random_state=0).fit(table)
    # with the average spread, .18 instead
    assert max(described(model, table)["fit"]["pit"]["ks"]) < 0.03


@pytest.mark.slow
def test_effects_by_component_are_listed_and_the_pit_knows_them(rng):
    cluster, age = rng.integers(0, 2, 600), rng.normal(50, 10, 600)
    y = np.where(cluster == 0, 0.3, -0.3) * (age - 50) + 8 * cluster + rng.normal(size=600)
    table = pd.DataFrame({"y": y, "x": rng.normal(size=600), "age": age})
    options = {"formula": "age", "features": ["y", "x"], "estimation": "joint", "effects": "by-component"}
    model = rm.ResidualMixture(2, labels_init=cluster, **options).fit(table)
    model.set_params(labels_init=None)
    summary = described(model, table)
    first = summary["effects_by_component"][0]
    assert (first["column"], first["feature"]) == ("age", "y")
    assert sorted(first["estimates"]) == pytest.approx([-0.3, 0.3], abs=0.05)
    order = [row["number"] for row in summary["components"]]
    assert first["estimates"] == [model.coef_[k, 0, 0] for k in order]
    assert max(summary["fit"]["pit"]["ks"]) < 0.06
    assert "for each component" in summary["methods"]["text"]


def test_spreads_by_group_are_multiples_of_the_average(rng):
    site, cluster = np.repeat(["a", "b"], 300), np.tile([0, 1], 300)
    wide = np.stack([np.where((site == "b") & (cluster == 1), 4.0, 1.0), np.ones(600)], axis=1)
    table = pd.DataFrame(9.0 * cluster[:, None] + wide * rng.normal(size=(600, 2)), columns=["x", "y"])
    options = {"formula": "site", "covariance_by": "site", "estimation": "joint", "random_state": 0}
    model = rm.ResidualMixture(2, **options).fit(table.assign(site=site))
    summary = described(model, table.assign(site=site))
    first, second = summary["spreads_by_group"]
    assert (first["levels"], second["levels"]) == (["a"], ["b"])
    assert second["feature"] == "x"
    wider = [row["number"] for row in summary["components"]].index(int(np.argmax(model.covariances_[:, 0, 0])))
    assert second["spreads"][wider] / first["spreads"][wider] == pytest.approx(2.0, rel=0.1)  # of 4 and 1 the mean
    assert second["spreads"][1 - wider] / first["spreads"][1 - wider] == pytest.approx(1.0, rel=0.1)


def test_features_with_wrong_values_come_most_first(rng):
    table = pd.DataFrame(rng.normal(size=(300, 3)), columns=["x", "y", "z"])
    table.loc[:30, "y"], table.loc[50:59, "z"] = rng.uniform(20, 60, 31), rng.uniform(20, 60, 10)
    table["site"] = np.tile(["a", "b"], 150)
    model = rm.ResidualMixture(1, formula="site", estimation="joint", cells=0.3, random_state=0).fit(table)
    rows = described(model, table)["set_aside"]
    assert [row["feature"] for row in rows][:2] == ["y", "z"]
    assert rows[0]["share"] == model.cell_shares_[1] >= 31 / 300
    assert described(rm.ResidualMixture(1, formula="site", random_state=0).fit(table), table)["set_aside"] == []


@pytest.mark.slow
def test_verdicts_tell_apart_what_is_gone_what_a_forest_reads_and_what_a_line_reads(rng):
    site = np.repeat(["a", "b"], 300)
    x = rng.normal(size=(600, 3))
    gone = pd.DataFrame(x + (site == "a")[:, None], columns=list("xyz")).assign(site=site)
    spread = pd.DataFrame(x * np.where(site == "a", 1, 4)[:, None], columns=list("xyz")).assign(site=site)
    model = rm.Residualizer("site")
    assert "find no association in the residuals" in described(model.fit(gone), gone)["verdict"]["headline"]
    assert "a forest still predicts site" in described(model.fit(spread), spread)["verdict"]["headline"]
    age = rng.normal(size=600)
    bent = pd.DataFrame({"x": age**3, "y": x[:, 0], "z": np.exp(2 * age), "age": age})
    summary = described(rm.Residualizer("age").fit(bent), bent)
    assert "a forest still predicts age" in summary["verdict"]["headline"]


def test_held_out_likelihood_is_below_that_in_the_sample_and_near_the_truth(rng):
    X = rng.normal(size=(300, 2))
    fit = described(rm.GaussianMixture(4, random_state=0).fit(X), X)["fit"]
    assert fit["held_out_log_likelihood_per_row"] < fit["log_likelihood_per_row"]
    assert fit["held_out_log_likelihood_per_row"] == pytest.approx(-np.log(2 * np.pi) - 1, abs=0.3)


@pytest.mark.slow
def test_methods_name_settings_seed_and_references(mixture):
    told = described(mixture, penguins())["methods"]
    for part in ("333 rows of 4 features", "(C(sex)) was removed", "A mixture of 3 Gaussians (full", "seed 0"):
        assert part in told["text"]
    assert any("Dempster" in reference for reference in told["references"])


def test_a_large_table_is_described_on_a_sample_and_says_so(rng):
    X = rng.normal(size=(20_001, 2))
    summary = described(rm.GaussianMixture(1).fit(X), X, probes=False)
    assert (summary["n_rows"], summary["n_shown"]) == (20_001, 4001)


@pytest.mark.slow
def test_noise_and_heavy_tails_have_reports_too(rng):
    X = np.concatenate([rng.normal(-5, 1, (150, 2)), rng.normal(5, 1, (150, 2)), rng.uniform(-30, 30, (20, 2))])
    table = pd.DataFrame(X, columns=["x", "y"]).assign(group=np.repeat(["a", "b", "c"], [150, 150, 20]))
    for options in ({"noise": True}, {"distribution": "t"}):
        model = rm.GaussianMixture(2, random_state=0, **options).fit(table[["x", "y"]])
        summary = described(model, table, reference="group")
        assert summary["fit"]["pit"] is None
        labels = np.asarray(model.predict(table[["x", "y"]]))
        assert np.sum(summary["reference"]["table"]) == np.sum(labels >= 0)
        with pytest.raises(ValueError, match="Gaussian components without noise"):
            rm.plot_pit(model, table[["x", "y"]])


@pytest.mark.slow
def test_the_verdict_of_a_gated_mixture_knows_that_shares_may_stay(rng):
    site = np.repeat(["a", "b"], 400)
    kind = rng.random(800) < np.where(site == "a", 0.8, 0.2)
    table = pd.DataFrame(rng.normal(size=(800, 2)) + 5.0 * kind[:, None], columns=["x", "y"]).assign(site=site)
    gated = rm.ResidualMixture(2, formula="site", estimation="joint", gating="metadata", random_state=0).fit(table)
    summary = described(gated, table)
    probe = next(row for row in summary["association"] if row["probe"] == "linear")
    assert 0.7 < probe["after"] < 0.85  # the shares alone, .8 and .2, give .8
    assert "a held-out linear probe still predicts site" in summary["verdict"]["headline"]
    assert "mix of components" in summary["verdict"]["advice"]


def eraser_of(method, n=1500, **options):
    rng = np.random.default_rng(0)
    site = rng.integers(2, size=n)
    x = rng.normal(size=(n, 2)) * np.where(site == 1, 2.5, 1.0)[:, None] + site[:, None]
    table = pd.DataFrame(x, columns=["x", "y"]).assign(site=np.where(site == 1, "B", "A"))
    return rm.Eraser("C(site)", method=method, **options).fit(table), table


def test_a_report_on_a_transport_shows_its_certificate(tmp_path):
    eraser, table = eraser_of("full", n_components=1)
    for summary in (described(eraser), described(eraser, table)):
        certificate = summary["certificate"]
        assert certificate["passed"] and summary["verdict"]["headline"].startswith("site erased by transport (full, 1")
        assert {row["probe"] for row in summary["association"]} == {"linear", "forest", "network"}
        assert certificate["probes"][1]["before"] > 0.8 > 0.6 > certificate["probes"][1]["after"]
        assert "Rosenblatt's transform" in summary["methods"]["text"]
    page = eraser.report(tmp_path / "r.html", table).read_text()
    assert (
        "<h2>Certificate</h2>" in page and "Passed, on 450 rows" in page and "What the metadata explained" not in page
    )
    # the spread of a level is gone
    spread = [row["spread_after"] for row in summary["levels"][0]["levels"]]
    assert max(spread) / min(spread) < 1.1


def test_a_certificate_that_failed_is_the_headline_and_an_alert():
    rng = np.random.default_rng(0)
    site = rng.integers(2, size=3000)
    x = np.where(site == 1, rng.normal(size=3000), 1.2 * rng.choice([-1, 1], 3000) + 0.2 * rng.normal(size=3000))
    table = pd.DataFrame({"x": x, "site": np.where(site == 1, "B", "A")})
    with pytest.warns(CertificateWarning):
        eraser = rm.Eraser("C(site)", method="spread").fit(table)
    summary = described(eraser, table)
    assert "the certificate failed" in summary["verdict"]["headline"]
    assert any(alert["kind"] == "certificate" for alert in summary["alerts"])


def test_a_linear_eraser_has_a_report_too():
    eraser, table = eraser_of("linear")
    summary = described(eraser, table)
    assert summary["certificate"] is None
    forest = next(row for row in summary["association"] if row["probe"] == "forest")
    assert forest["after"] > 0.65  # spread stays
    linear = next(row for row in summary["association"] if row["probe"] == "linear")
    assert linear["after"] < 0.6


@pytest.mark.filterwarnings("ignore::residmix.errors.DesignWarning")  # of chance, among 500
def test_a_report_of_very_many_features_lists_the_first_ones_and_says_so(tmp_path, rng):
    names = [f"x{j}" for j in range(500)]
    for d in (500, 30):
        table = pd.DataFrame(rng.normal(size=(40, d)), columns=names[:d])
        rm.Residualizer(features=names[:d]).fit(table, metadata=np.arange(40.0) % 7).report(tmp_path / "r.html")
        text = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert ("the first 200 of 500" in text) == (d == 500) and "<dt>features</dt>" in text


def two_sites(rng, n=1500):
    """Rows whose sites differ in how features go together, and in nothing else."""
    site = np.repeat(["a", "b", "c"], n // 3)
    X = rng.normal(size=(n, 4))
    for own, sign in (("b", 1), ("c", -1)):  # opposite ways: the pooled covariance shows nothing of it
        X[site == own, 1] = sign * 0.8 * X[site == own, 0] + 0.6 * X[site == own, 1]
    return pd.DataFrame(X, columns=list("wxyz")).assign(site=site)


@pytest.mark.parametrize("kind", ["shrunk", "scores"])
def test_covariances_by_level_are_those_of_the_table_and_what_still_differs_is_an_alert(kind, rng, tmp_path):
    table = two_sites(rng)
    model = rm.Residualizer("C(site)", scale=True, covariance=kind).fit(table)
    summary = described(model, table, probes=False)
    (column,), own = summary["covariances"], model.level_table("C(site)")
    assert [row["level"] for row in column["levels"]] == ["a", "b", "c"]
    np.testing.assert_allclose([row["before"] for row in column["levels"]], own["covariance"])
    np.testing.assert_allclose([row["after"] for row in column["levels"]], own["covariance_after"])
    left = [alert["figures"]["levels"] for alert in summary["alerts"] if alert["kind"] == "covariances-differ"]
    assert left == ([] if kind == "shrunk" else [["b", "c"]])
    assert "Human Brain Mapping" in " ".join(summary["methods"]["references"])
    page = model.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Covariances by level" in page
    assert described(rm.Residualizer("C(site)", scale=True).fit(table))["covariances"] == []


def test_what_metadata_still_say_is_measured_for_covariances_by_level_too(rng):
    table = pd.DataFrame(rng.normal(size=(600, 3)), columns=list("abc"))
    table["site"] = rng.choice(["x", "y"], 600)
    table.loc[table["site"] == "y", "a"] *= 3
    model = rm.ResidualMixture(
        1, formula="C(site)", covariance_by="site", estimation="joint", features=list("abc"), random_state=0
    ).fit(table)
    found = gather(model, table)
    assert found.association is not None and found.held_out is not None
    assert not [note for note in found.notes if note["kind"] == "not-measured"]


def test_components_that_follow_metadata_beyond_the_reference_are_told_from_those_that_do_not(rng, tmp_path):
    n = 900
    kind, site = rng.choice(["u", "v"], n), rng.choice(["a", "b"], n)
    X = rng.normal(size=(n, 3)) + 5.0 * (kind == "v")[:, None]
    table = pd.DataFrame(X, columns=list("xyz")).assign(kind=kind, site=site)
    follows = table.assign(x=table["x"] + np.where((site == "b") & (rng.random(n) < 0.5), 20.0, 0.0))
    for data, K, confounded in ((table, 2, False), (follows, 4, True)):
        model = rm.ResidualMixture(K, formula="C(site)", random_state=0, features=list("xyz")).fit(data)
        summary = described(model, data, reference="kind")
        partial, full = summary["confounding"]
        assert (partial["kind"], full["kind"]) == ("partial", "full")
        assert full["p_value"] <= 0.05
        assert (partial["p_value"] <= 0.05) is confounded
        assert ("confounded-components" in {alert["kind"] for alert in summary["alerts"]}) is confounded
        assert "GigaScience" in " ".join(summary["methods"]["references"])
        assert "Confounder tests" in model.report(tmp_path / "page.html", data, reference="kind").read_text(
            encoding="utf-8"
        )
    assert described(model, data)["confounding"] == []
