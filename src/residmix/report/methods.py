"""A methods paragraph to copy into a paper, with references as text."""

from __future__ import annotations

from typing import Any

__all__ = ["methods"]

REFERENCES = {
    "em": "Dempster, Laird and Rubin (1977). Maximum likelihood from incomplete data via the EM algorithm. Journal of "
    "the Royal Statistical Society B 39:1-38.",
    "ecm": "Meng and Rubin (1993). Maximum likelihood estimation via the ECM algorithm. Biometrika 80:267-278.",
    "gate": "Dayton and Macready (1988). Concomitant-variable latent-class models. Journal of the American Statistical "
    "Association 83:173-178.",
    "own": "Gruen and Leisch (2008). FlexMix version 2: finite mixtures with concomitant variables and varying and "
    "constant parameters. Journal of Statistical Software 28(4).",
    "eb": "Johnson, Li and Rabinovic (2007). Adjusting batch effects in microarray expression data using empirical "
    "Bayes methods. Biostatistics 8:118-127.",
    "covbat": "Chen, Beer, Tustison, Cook, Shinohara and Shou (2022). Mitigating site effects in covariance for "
    "machine learning in neuroimaging data. Human Brain Mapping 43:1179-1195.",
    "confounder": "Spisak (2022). Statistical quantification of confounding bias in machine learning models. "
    "GigaScience 11.",
    "blup": "Henderson (1975). Best linear unbiased estimation and prediction under a selection model. Biometrics "
    "31:423-447.",
    "leace": "Belrose et al. (2023). LEACE: perfect linear concept erasure in closed form. Advances in Neural "
    "Information Processing Systems 36.",
    "rosenblatt": "Rosenblatt (1952). Remarks on a multivariate transformation. Annals of Mathematical Statistics "
    "23:470-472.",
    "bic": "Schwarz (1978). Estimating the dimension of a model. Annals of Statistics 6:461-464.",
    "pit": "Dawid (1984). Statistical theory: the prequential approach. Journal of the Royal Statistical Society A "
    "147:278-292.",
}


def methods(summary: dict[str, Any]) -> dict[str, Any]:
    """Return ``{"text": ..., "references": [...]}`` with all settings that matter, the seed and rows left out."""
    setting: dict[str, Any] = summary["settings"]
    cited: list[str] = []
    sentences = [_rows(summary)]
    if summary["certificate"] is not None:
        sentences.append(_transport(summary, setting, cited))
    elif summary["model"] == "Eraser":
        cited.append("leace")
        sentences.append(f"A linear map of the features erased the metadata ({setting.get('formula')}).")
    elif summary["metadata_columns"]:
        sentences.append(_removal(summary, setting, cited))
    if summary["components"]:
        sentences.append(_mixture(summary, setting, cited))
    if summary["certificate"] is None and any(row["held_out"] for row in summary["association"]):
        sentences.append(
            "The remaining association with the metadata was measured by logistic or ridge regression and by a "
            "random forest on rows held out of both the residualization and the prediction model (five folds of "
            f"{summary['n_shown']:,} rows; p-values by permutation)."
        )
    if summary["confounding"]:
        cited.append("confounder")
        sentences.append(
            f"Whether the components depend on the metadata given {summary['reference']['name']}, and on it given the "
            f"metadata, was tested by conditional permutation ({summary['confounding'][0]['n_permutations']} "
            "permutations)."
        )
    if summary["fit"] is not None and summary["fit"]["pit"]:
        cited.append("pit")
    versions = summary["versions"]
    sentences.append(
        f"Computed with residmix {versions['residmix']} (numpy {versions['numpy']}, Python {versions['python']})."
    )
    return {"text": " ".join(sentences), "references": [REFERENCES[key] for key in dict.fromkeys(cited)]}


def _rows(summary: dict[str, Any]) -> str:
    dropped = next((note["figures"] for note in summary["notes"] if note["kind"] == "dropped-rows"), None)
    told = f"{summary['n_rows']:,} rows" if summary["n_rows"] else "All rows of the fit"
    if dropped:
        told += f" ({dropped['dropped']:,} of {dropped['rows']:,} were left out for missing values)"
    d = len(summary["feature_names"])
    return f"{told} of {d:,} feature{'' if d == 1 else 's'} were used."


def _removal(summary: dict[str, Any], setting: dict[str, Any], cited: list[str]) -> str:
    formula = setting.get("formula")
    what = f"the effect of the metadata ({formula})" if formula else "the effect of the metadata"
    kept = setting.get("preserve")
    beside = f", with {kept} in the model and preserved" if kept else ""
    if setting.get("effects") == "by-component":
        cited.append("own")
        return f"{what[0].upper()}{what[1:]} was estimated for each component, jointly with the mixture."
    if setting.get("estimation") == "joint":
        return f"{what[0].upper()}{what[1:]} was estimated jointly with the mixture{beside}."
    text = f"{what[0].upper()}{what[1:]} was removed from each feature by least squares{beside}"
    shrinkage = setting.get("shrinkage")
    if shrinkage:
        cited.append("blup" if isinstance(shrinkage, dict) else "eb")
        named = "best linear unbiased prediction" if isinstance(shrinkage, dict) else "empirical Bayes"
        text += f"; effects were shrunk by {named}"
    scale = setting.get("scale")
    if isinstance(scale, str):
        text += f"; log variances were modelled by {scale}, and what removed terms explain of them was taken out"
    elif scale:
        text += "; the spread of each level was adjusted to the pooled one"
    if setting.get("covariance"):
        cited.append("covbat")
        asked = setting["covariance"]
        kind = next(iter(asked.values())) if isinstance(asked, dict) else asked
        how = "variances of principal scores" if kind == "scores" else "covariance, shrunk towards the pooled one,"
        text += f"; the {how} of each level {'were' if kind == 'scores' else 'was'} adjusted to the pooled one"
    if setting.get("reference") is not None:
        text += f"; the reference is {setting['reference']}"
    if setting.get("missing", "error") != "error":
        text += f"; missing metadata were treated by {setting['missing']!r}"
    return f"{text}. Residuals have mean zero and keep the units of the features."


def _transport(summary: dict[str, Any], setting: dict[str, Any], cited: list[str]) -> str:
    made, kept = summary["certificate"], setting.get("preserve")
    cited.append("rosenblatt")
    target = {
        "spread": "one Gaussian",
        "component": "the clusters of a reference, with the shares that they have at its own metadata",
        "full": "the mixture of a reference",
    }[made["method"]]
    beside = f", given {kept}" if kept else ""
    tried = len(made["candidates"])
    chosen = f", chosen among {tried} mixtures on held-out rows," if tried > 1 else ""
    return (
        f"A mixture of {made['n_components']} Gaussians given the metadata ({setting.get('formula')}){beside}{chosen} "
        f"was fitted, and each row was carried from the law that its metadata give it to {target} by Rosenblatt's "
        f"transform. {made['n_rows']:,} rows held out of a fit to the others were compared with the model at each "
        "level, and probed by a linear model, a random forest and a network."
    )


def _mixture(summary: dict[str, Any], setting: dict[str, Any], cited: list[str]) -> str:
    K, family = len(summary["components"]), summary["covariance_type"]
    target = "the residuals" if summary["metadata_columns"] else "the features"
    joint = setting.get("estimation") == "joint" or setting.get("covariance_by") is not None
    joint |= setting.get("effects") == "by-component"
    cited.append("ecm" if joint else "em")
    how = "expectation conditional maximization" if joint else "expectation maximization"
    weights = ""
    if setting.get("gating") == "metadata":
        cited.append("gate")
        weights = ", its weights depending on the metadata"
    elif setting.get("gating", "constant") != "constant":
        cited.append("gate")
        weights = f", its weights depending on {setting['gating']}"
    if setting.get("covariance_by") is not None:
        weights += f", of each component at each level of {setting['covariance_by']}"
    chosen = ""
    if summary["selection"]:
        cited.append("bic")
        chosen = f", chosen among {len(summary['selection'])} fits by {setting.get('criterion', 'bic')!r},"
    kind = "Student-t distribution" if setting.get("distribution") == "t" else "Gaussian"
    ridge = setting.get("reg_covar")
    ridge = ridge if isinstance(ridge, str) else f"{ridge:g}"
    return (
        f"A mixture of {K} {kind}{'' if K == 1 else 's'} ({family} covariance{weights}){chosen} was fitted to "
        f"{target} by {how} (n_init {setting.get('n_init')}, init_params {setting.get('init_params')!r}, tol "
        f"{setting.get('tol'):g}, reg_covar {ridge}, seed {setting.get('random_state')}).{_robust(setting)}"
    )


def _robust(setting: dict[str, Any]) -> str:
    """Return sentences on noise, trimming, values set aside, near components, priors and bounds."""
    told = []
    if setting.get("noise"):
        told.append("Rows that belong to no component have a uniform density over the bounding box of all rows.")
    if setting.get("trim"):
        told.append(f"The least likely {100 * setting['trim']:g} % of the rows were trimmed.")
    if setting.get("cells"):
        told.append(
            "Values that are unlikely given the others of their row were set aside, at most "
            f"{100 * setting['cells']:g} % of each feature (after Raymaekers and Rousseeuw 2023)."
        )
    if setting.get("search", "all") != "all":
        told.append("In the E-step each row was compared with the components near it only (Forster and Lucke 2018).")
    if setting.get("eigenvalue_ratio") is not None:
        told.append(f"The ratio of any two eigenvalues of covariances was at most {setting['eigenvalue_ratio']:g}.")
    if setting.get("prior") is not None:
        named = "mclust's default" if setting["prior"] == "mclust" else f"a given ({setting['prior']!r})"
        told.append(f"Parameters maximise the posterior under {named} conjugate prior (Fraley and Raftery 2007).")
    if "em" in (setting.get("missing"), setting.get("missing_features")):
        told.append("Missing values were integrated out.")
    return "".join(f" {one}" for one in told)
