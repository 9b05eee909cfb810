"""Draw the README's picture: penguins before and after their sex is taken out.

python examples/penguins_picture.py docs/_static/penguins.png
"""

import sys

from matplotlib.figure import Figure

import residmix as rm
from residmix.data import penguins

table = penguins()
measured = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
model = rm.ResidualMixture(3, formula="C(sex)", features=measured, random_state=0).fit(table)
figure = Figure(figsize=(9.6, 4.3), layout="constrained")
titles = {"before": "as measured", "after": "residual: sex taken out"}
for axes, (stage, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
    rm.plot_components(model, table, stage=stage, groups="species", ax=axes).set_title(title, fontsize=10.5)
figure.savefig(sys.argv[1], dpi=110, facecolor="white")
