"""Draw one of each picture, on the penguins.

python examples/gallery.py docs/_static/gallery.png
"""

import sys

from matplotlib.figure import Figure

import residmix as rm
from residmix.data import penguins

table = penguins()
measured = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
mixture = rm.ResidualMixture(3, formula="C(sex)", features=measured, random_state=0).fit(table)
island = rm.Residualizer("C(island)", features=measured).fit(table)
line = rm.Residualizer("bill_depth_mm", features=["body_mass_g"]).fit(table)
sex = rm.Residualizer("C(sex)", features=measured)
left = rm.association(table, formula="C(sex)", features=measured, after=sex, n_permutations=49)
search = rm.GaussianMixture(range(1, 7), covariance_type=["VVV", "EEE", "VVI", "EII"], random_state=0)
search.fit(table[measured])
slow = rm.GaussianMixture(3, accelerate=False, init_params="random", random_state=0).fit(table[measured])

figure = Figure(figsize=(14, 14), layout="constrained")
axes = figure.subplots(4, 2).ravel()
rm.plot_association(left, ax=axes[0])
rm.plot_levels(island, table, ax=axes[1])
rm.plot_residuals_vs_metadata(line, table, ax=axes[2])
rm.plot_residuals_vs_metadata(island, table, ax=axes[3])
rm.plot_components(mixture, table, groups="species", ax=axes[4])
rm.plot_selection(search, ax=axes[5])
rm.plot_pit(mixture, table, ax=axes[6])
rm.plot_convergence(slow, ax=axes[7])
names = ("association", "levels", "residuals_vs_metadata", "residuals_vs_metadata", "components", "selection", "pit",
         "convergence")  # fmt: skip
for ax, name in zip(axes, names, strict=True):
    ax.set_title(f"plot_{name}", loc="right", fontsize=10, family="monospace")
figure.savefig(sys.argv[1], dpi=72, facecolor="white")
