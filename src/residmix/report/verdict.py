"""The first lines of a report: what was removed, what is left, and the notes behind this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from residmix.design.formula.parser import formula_columns

__all__ = ["alerts", "verdict"]

# Notes that change what one may conclude.
GRAVE = frozenset(
    {
        "all-noise", "below-chance", "certificate", "collapsed-scale", "collinearity", "convergence", "dead-component",
        "dropped-rows", "entangled-effects", "leakage", "many-columns", "mostly-noise", "rare-level", "spike",
    }
)  # fmt: skip
LEFT_P = 0.05  # a probe has found something if permuted labels do as well less often
LEFT_AUC, LEFT_R2 = 0.6, 0.05  # and it's worth a word from here on
LEFT_NATS = 0.02  # divergence per direction of a level's covariance from the pooled one that is worth a word
LOST_ROWS = 0.05  # share of dropped rows from which the verdict says so


ADVICE = {
    "shape": "The remaining association is in the spread or shape, not in the mean: try scale=True, splines such as "
    "bs(age, df=4) in the formula, or an Eraser.",
    "formula": "The formula doesn't describe the effect well: add interactions or splines, or look for features "
    "with repeated values.",
    "shares": "The weights of the components depend on the metadata, and residuals keep this: the remaining "
    "association is in the mix of components, the spread or the shape.",
}


def _amount(row: dict[str, Any], stage: str) -> str:
    name = "AUC" if row["kind"] == "groups" else "R²"
    return f"{name} {row[stage]:.2f}".replace("0.", ".", 1)


def still_there(row: dict[str, Any]) -> bool:
    """Tell whether a held-out probe still predicts a column after residualization."""
    if not row["held_out"] or row.get("after") is None:
        return False
    least = LEFT_AUC if row["kind"] == "groups" else LEFT_R2
    return row["after"] >= least and (row.get("after_p") is None or row["after_p"] <= LEFT_P)


def verdict(summary: dict[str, Any]) -> dict[str, str]:
    """Return the headline, one sentence or two, and what follows from it."""
    removed = summary["metadata_columns"]
    if summary["certificate"] is not None:
        return _of_transport(summary)
    if not removed:
        K = len(summary["components"])
        return {"headline": f"{K} component{'' if K == 1 else 's'}; no metadata was removed.", "advice": ""}
    share = f"{_listed(removed)} explained {100 * summary['explained']:.1f} % of the variance"
    probes = [row for row in summary["association"] if row["held_out"]]
    if not probes:
        return {"headline": f"{share}; the remaining association was not measured.", "advice": ""}
    gated = _gated(summary)
    left = {kind: [row for row in probes if row["probe"] == kind and still_there(row)] for kind in ("linear", "forest")}
    if not left["linear"] and not left["forest"]:
        return {"headline": f"{share}; linear and forest probes find no association in the residuals.", "advice": ""}
    if not left["linear"]:
        told = _listed([f"{row['metadata']} ({_amount(row, 'after')})" for row in left["forest"]])
        return {
            "headline": f"{share}; a linear probe finds no association in the residuals, but a forest still predicts "
            f"{told}.",
            "advice": ADVICE["shares" if gated else "shape"],
        }
    told = _listed([f"{row['metadata']} ({_amount(row, 'after')})" for row in left["linear"]])
    return {
        "headline": f"{share}, but a held-out linear probe still predicts {told} from the residuals.",
        "advice": ADVICE["shares" if gated else "formula"],
    }


def _listed(names: list[str]) -> str:
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def alerts(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the notes that the verdict needs: grave ones of the fit, and what the summary itself shows."""
    found = [
        note
        for note in summary["notes"]
        if note["kind"] in GRAVE
        and not (note["kind"] == "dropped-rows" and note["figures"]["dropped"] < LOST_ROWS * note["figures"]["rows"])
    ]

    def add(kind: str, message: str, **figures: Any) -> None:
        if all(message != note["message"] for note in found):
            found.append({"kind": kind, "message": message, "figures": figures})

    for row in summary["association"]:
        if summary["certificate"] is None and still_there(row):
            add(
                "still-there",
                f"{row['metadata']} is not fully removed: a held-out {row['probe']} probe still predicts it with "
                f"{_amount(row, 'after')} (before {_amount(row, 'before')}, by chance {row['chance']:.2f}).",
                metadata=row["metadata"], probe=row["probe"], before=row["before"], after=row["after"],
            )  # fmt: skip
    fit = summary["fit"]
    if fit is not None and not fit["converged"] and all(note["kind"] != "convergence" for note in found):
        add(
            "convergence",
            f"The fit stopped after {fit['n_iter']} iteration{'' if fit['n_iter'] == 1 else 's'} without converging: "
            "raise max_iter or tol.",
            n_iter=fit["n_iter"],
        )
    _add_small(summary, add)
    for column in summary["metadata"]:
        if column["kind"] == "groups" and column["ami"] > 0.2 and not _weighs(summary, column["name"]):
            remedy = "add it to gating" if _gated(summary) else 'try estimation="joint" with gating="metadata"'
            add(
                "components-follow-metadata",
                f"The components still follow {column['name']} (adjusted mutual information {column['ami']:.2f}): "
                f"its effect may not be additive, or its levels differ in what they are made of; {remedy}.",
                metadata=column["name"], ami=column["ami"],
            )  # fmt: skip
    _add_confounding(summary, add)
    for level in summary["levels"]:
        for row in level["levels"]:
            if row["odd"]:
                add(
                    "odd-level",
                    f"{level['name']} {row['level']} is an outlier among the levels (shift {row['shift_before']:.2f} "
                    f"sd, spread {row['spread_before']:.2f} before).",
                    metadata=level["name"], level=row["level"],
                )  # fmt: skip
    return found


def _gated(summary: dict[str, Any]) -> bool:
    """Tell whether the weights of the components depend on metadata."""
    return summary["gating"] not in (None, "constant") and summary["estimation"] == "joint"


def _weighs(summary: dict[str, Any], name: str) -> bool:
    """Tell whether they depend on this column: then components follow it as the model says."""
    if not _gated(summary):
        return False
    if summary["gating"] == "metadata":
        return name in (*summary["metadata_columns"], *summary["preserved_columns"])
    return name in formula_columns(summary["gating"])


def _add_confounding(summary: dict[str, Any], add: Callable[..., None]) -> None:
    """Add alerts for components that depend on metadata given the reference, and for covariances that still differ."""
    for test in summary["confounding"]:
        if test["kind"] == "partial" and test["p_value"] <= LEFT_P and test["statistic"] > test["expected"][2]:
            add(
                "confounded-components",
                f"Given {summary['reference']['name']}, the components still depend on "
                f"{_listed(summary['metadata_columns'])} (R² {test['statistic']:.3f}, expected "
                f"{test['expected'][1]:.3f}, p = {test['p_value']:.2g}).",
                statistic=test["statistic"], expected=test["expected"][1], p_value=test["p_value"],
            )  # fmt: skip
    for column in summary["covariances"]:
        far = [row["level"] for row in column["levels"] if row["after"] > max(LEFT_NATS, row["before"] / 2)]
        if far:
            more = f" and {len(far) - 5} more" if len(far) > 5 else ""
            add(
                "covariances-differ",
                f"The covariances of {column['name']} {_listed(far[:5])}{more} still differ from the pooled one: "
                'covariance="scores" changes variances along its axes only; try covariance="shrunk".',
                metadata=column["name"], levels=far,
            )  # fmt: skip


def _add_small(summary: dict[str, Any], add: Callable[..., None]) -> None:
    """Add an alert for components with too few rows for a covariance."""
    d = len(summary["feature_names"])
    if not summary["n_rows"] or summary["covariance_type"] not in ("full", "VVV"):
        return
    rows = {row["number"]: row["weight"] * summary["n_rows"] for row in summary["components"]}
    small = {k: count for k, count in sorted(rows.items()) if count < d + 1}
    if small:
        some = len(small) > 1
        add(
            "few-rows",
            f"Component{'s' if some else ''} {_listed([str(k) for k in small])} {'have' if some else 'has'} about "
            f"{_listed([f'{count:.0f}' for count in small.values()])} rows, too few for a covariance of {d} features: "
            'try covariance_type="diag", fewer components, or fewer features, such as principal components.',
            rows={str(k): count for k, count in small.items()},
        )  # fmt: skip


def _of_transport(summary: dict[str, Any]) -> dict[str, str]:
    """Return headline and advice of a report on a transport."""
    made, removed = summary["certificate"], ", ".join(summary["metadata_columns"])
    told = f"{removed} erased by transport ({made['method']}, {made['n_components']} components)"
    if not made["passed"]:
        return {
            "headline": f"{told}: the certificate failed.",
            "advice": f"{made['failures'][0][:1].upper()}{made['failures'][0][1:]}. Try more components, another "
            "method, or more rows.",
        }
    best = max((row for row in made["probes"] if row["measure"] == "AUC"), key=lambda row: row["after"], default=None)
    read = "" if best is None else f"; the best of held-out probes reads AUC {best['after']:.2f}"
    left = ""
    if made["method"] == "component" and made["shares"] is not None:
        left = f"What is left is what the shares of the clusters alone say: AUC {made['shares']:.2f}."
    return {"headline": f"{told}: the certificate passed{read}.", "advice": left}
