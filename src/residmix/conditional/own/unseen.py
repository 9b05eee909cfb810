"""Effects of a component without rows, as at a site where it doesn't occur."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from residmix.errors import DesignWarning, warn
from residmix.mixture.iteration.step import MixtureEM, with_effects_only
from residmix.mixture.params import MixtureParams
from residmix.rows.rows import Rows

__all__ = ["tell_of_unseen"]

Floats = NDArray[np.float64]

# Sum of squares of a direction of the orthonormal design within a component, below which less than half a row tells of
# its effect: a row of one level adds as many times 1 as there are rows to one of that level.
HALF_A_ROW = 0.5
# Columns are named that carry this share of what the foremost one does; messages name so many.
CARRIES = 0.5
SHOWN = 5


def tell_of_unseen(rows: Rows, params: MixtureParams, basis: Floats, columns: Sequence[str]) -> None:
    """Warn of effects by component with less than half a row, which are replaced by least squares on all rows."""
    if not params.by_component:
        return
    r, inverse = params.n_design, np.linalg.pinv(basis)
    moments = with_effects_only(MixtureEM(rows, 0.0).moments(params), params)
    scale = np.linalg.norm(inverse, axis=0)
    found: dict[int, list[str]] = {}
    for k in range(params.n_components):
        weight = max(float(moments.weight[k]), 1e-300)
        shift = moments.shift[k, :r]
        within = moments.scatter[k, :r, :r] - np.outer(shift, shift) / weight
        values, vectors = np.linalg.eigh(0.5 * (within + within.T) * moments.rows / moments.total)
        lacking = vectors[:, values < HALF_A_ROW]
        if not lacking.size:
            continue
        load = np.linalg.norm(lacking.T @ inverse, axis=0) / np.where(scale > 0, scale, 1.0)
        found[k] = [str(columns[int(j)]) for j in np.flatnonzero(load >= CARRIES * load.max())]
    if found:
        parts = [f"{k} ({', '.join(named[:SHOWN])})" for k, named in list(found.items())[:SHOWN]]
        warn(
            "components have too few rows to estimate these effects, so least squares on all rows is used instead: "
            f"{'; '.join(parts)}. Use fewer components, or effects='shared'",
            DesignWarning,
            kind="effects-not-estimated",
            effects={str(k): named for k, named in found.items()},
        )
