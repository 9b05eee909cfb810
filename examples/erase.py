"""Draw what each method of `Eraser` does to the rows of two sites.

python examples/erase.py docs/_static/erase.png
"""

import sys
import warnings

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import residmix as rm
from residmix.errors import CertificateWarning

rng = np.random.default_rng(0)
n = 3000
site, kind = rng.integers(2, size=n), rng.random(n)
kind = kind < np.where(site == 0, 0.7, 0.35)  # the sites differ in the share of their two clusters
x = rng.normal(size=(n, 2)) * np.where(site == 1, 1.0, 0.6)[:, None]
x[:, 0] += np.where(kind, 2.5, -2.5) + 0.8 * site
x[:, 1] += np.where(site == 1, 0.6, -0.5) * x[:, 0]
table = pd.DataFrame(x, columns=["x", "y"]).assign(site=np.where(site == 1, "B", "A"))

figure = Figure(figsize=(12, 3.2), layout="constrained")
shown = np.arange(700)
for ax, method in zip(figure.subplots(1, 5), ("as measured", "linear", "spread", "component", "full"), strict=True):
    moved = x
    if method != "as measured":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CertificateWarning)  # one Gaussian isn't enough, which is to be seen
            moved = rm.Eraser("C(site)", method=method, n_components=2).fit_transform(table)
    for level, colour, marker in ((0, "#0072B2", "o"), (1, "#D55E00", "^")):
        here = shown[site[shown] == level]
        ax.scatter(
            *moved[here].T, s=6, alpha=0.5, color=colour, marker=marker, linewidths=0, label=f"site {'AB'[level]}"
        )
    ax.set_title(method, fontsize=10)
    ax.set_xlim(-6, 6)
    ax.set_ylim(-5, 5)
figure.axes[0].legend(fontsize=8, loc="upper left")
figure.savefig(sys.argv[1], dpi=90, facecolor="white")
