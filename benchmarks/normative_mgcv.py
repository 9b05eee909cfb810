"""Normative scores of many features, spread included, beside mgcv's gaulss (R with mgcv).

Rows of twenty sites of very different size, ages that are far from uniform, curves and spreads that depend on age and
site. All fit ``site + sex + s(age)`` to the mean. Log spreads have the same terms, with "blup" sites as random
effects; with "eb" they are pooled over the features and those of sites only. What is compared is the log density of
held-out rows, feature by feature, and the processor's seconds for each feature. And for ours, whether scores of
held-out rows are standard normal at each site: the share of Kolmogorov-Smirnov tests, one a site and feature, with
p < 0.05:

    python benchmarks/normative_mgcv.py [features for mgcv]

A table of one's own, with columns age, sex, site and features f0, f1, ...: give its path as a second argument.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kstest

import residmix as rm

GAULSS = """
suppressMessages(library(mgcv))
files <- commandArgs(TRUE)
train <- read.csv(files[1], stringsAsFactors = TRUE); test <- read.csv(files[2], stringsAsFactors = TRUE)
names <- grep("^f[0-9]+$", names(train), value = TRUE)
one <- function(n) {
  start <- proc.time()[["user.self"]]
  m <- gam(list(as.formula(paste(n, "~ site + sex + s(age, bs = 'cr')")), ~ site + sex + s(age, bs = "cr")),
           data = train, family = gaulss(), method = "REML")
  seconds <- proc.time()[["user.self"]] - start
  p <- predict(m, test, type = "response")
  c(mean(dnorm(test[[n]], p[, 1], 1 / p[, 2], log = TRUE)), seconds)
}
found <- t(sapply(names, function(n) tryCatch(one(n), error = function(e) c(NA, NA))))
write.csv(data.frame(score = found[, 1], seconds = found[, 2]), files[3], row.names = FALSE)
"""


def draw(d: int = 150, n: int = 1000) -> pd.DataFrame:
    """Return rows with d features."""
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(20, 0.7))
    site = rng.choice(20, n, p=0.9 * share + 0.005)
    age = np.clip(rng.gamma(3.0, 9.0, n) + 8.0, 8.0, 88.0)
    curve = np.log(age)[:, None] * rng.normal(size=d) + np.sin(age / 20)[:, None] * rng.normal(size=d) * 0.5
    log_sd = 0.25 * rng.normal(size=(20, d))[site] + 0.3 * rng.normal(size=d) * (age / 40 - 1)[:, None]
    X = curve + 0.5 * rng.normal(size=(20, d))[site] + np.exp(log_sd) * rng.normal(size=(n, d))
    names = np.array([f"site{k:02d}" for k in range(20)])
    return pd.DataFrame(X, columns=[f"f{j}" for j in range(d)]).assign(
        age=age, sex=rng.choice(["F", "M"], n), site=names[site]
    )


def ours(
    train: pd.DataFrame, test: pd.DataFrame, features: list[str], sites: str
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the mean log density of the held-out rows by feature, seconds a feature, and the rows' scores."""
    model = rm.Residualizer(
        "site + sex + s(age)",
        features=features,
        scale=True,
        shrinkage={"site": sites} if sites else None,
        check_leakage=False,
    )
    model.fit(train)  # what is compiled, is compiled once
    start = time.process_time()
    model.fit(train)
    seconds = time.process_time() - start
    z = model.z_scores(test)
    spread = np.nanstd(test[features].to_numpy(), axis=0)  # only sets the unit of a numerical derivative
    step = 1e-4 * spread
    moved = test.assign(**{name: test[name] + own for name, own in zip(features, step, strict=True)})
    slope = (model.z_scores(moved) - z) / step  # dz/dx = 1 / standard deviation
    return (np.log(slope) - 0.5 * z**2 - 0.5 * np.log(2 * np.pi)).mean(axis=0), seconds / len(features), z


def odd(z: np.ndarray, site: np.ndarray) -> np.ndarray:
    """Return the share of features whose scores aren't standard normal at a site, for each site."""
    p = [kstest(z[site == name], "norm", axis=0).pvalue for name in np.unique(site)]
    return (np.array(p) < 0.05).mean(axis=1)


def main(n_theirs: int, path: str | None) -> None:
    """Print both."""
    table = draw() if path is None else pd.read_csv(path)
    features = [name for name in table if name[0] == "f" and name[1:].isdigit()]
    rng = np.random.default_rng(1)
    held = np.zeros(len(table), dtype=bool)
    for rows in table.groupby("site").indices.values():
        held[rng.choice(rows, int(0.3 * len(rows)), replace=False)] = True
    train, test = table[~held], table[held]
    chosen = features[:: max(1, len(features) // n_theirs)][:n_theirs]
    with tempfile.TemporaryDirectory() as place:
        files = [str(Path(place) / name) for name in ("train.csv", "test.csv", "found.csv")]
        columns = [*chosen, "age", "sex", "site"]
        train[columns].to_csv(files[0], index=False)
        test[columns].to_csv(files[1], index=False)
        script = Path(place) / "gaulss.R"
        script.write_text(GAULSS, encoding="utf-8")
        subprocess.run(["Rscript", str(script), *files], check=True)
        theirs = pd.read_csv(files[2])
    known = theirs["score"].notna().to_numpy()
    score, seconds = theirs["score"].to_numpy()[known], theirs["seconds"].to_numpy()[known].mean()
    print(
        f"{len(features)} features, {len(train)} rows, {len(test)} held out; mgcv fitted {known.sum()} of {len(chosen)}"
    )
    print(f"gaulss  log density {score.mean():.3f}, {1e3 * seconds:.1f} ms a feature")
    for sites in ("eb", "blup", ""):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, own, z = ours(train, test, features, sites)
        mine = found[[features.index(name) for name in chosen]][known]
        print(
            f"{sites or 'fixed':<7} log density {mine.mean():.3f}, {1e3 * own:.1f} ms "
            f"({seconds / own:.0f} times faster), no worse on {np.mean(mine >= score):.0%}"
        )
        off = odd(z, test["site"].to_numpy())
        print(f"        p < 0.05 in {off.mean():.1%} of tests by site and feature, {off.max():.1%} at the worst site")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2] if len(sys.argv) > 2 else None)
