"""Draw the README's picture: penguins before and after their sex is taken out.

python examples/penguins_picture.py docs/_static/penguins.png
"""

import sys

import numpy as np

import residmix as rm
from residmix.data import penguins
from residmix.report.plots import scatter_before_after
from residmix.report.summarise import component_order

table = penguins()
measured = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
model = rm.ResidualMixture(3, formula="C(sex)", features=measured, random_state=0).fit(table)
order = component_order(model)
figure = scatter_before_after(
    table[measured].to_numpy(),
    model.residuals(table),
    np.argsort(order)[model.predict(table)],
    model.means_[order],
    model.covariances_[order],
    measured,
    ("species", table["species"].to_numpy()),
)
figure.savefig(sys.argv[1], dpi=110, facecolor="white")
