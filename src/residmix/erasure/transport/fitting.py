"""Fit a transport and its certificate: number of components, training and held-out rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.erasure.transport.certificate import Certificate, measured
from residmix.erasure.transport.transport import Transport, fit_transport
from residmix.sources.open import as_table

__all__ = ["FIT_ROWS", "certified", "referred"]

Floats = NDArray[np.float64]

# Rows that laws are fitted on and measured with, evenly spaced: in memory, and enough for a dozen components a group.
FIT_ROWS = 200_000
HELD_OUT = 0.3
CANDIDATES = (1, 2, 3, 4, 6, 8)
# A further component must be worth this much of the log-likelihood of a held-out row.
WORTH = 1e-3
# So many numbers that aren't may stand before one that is: two Gaussians may be no better than one, and three are.
PATIENCE = 1


def certified(
    x: Floats,
    a: Floats,
    weight: Floats,
    n_removed: int,
    n_components: int | str,
    *,
    method: str,
    reference: Floats | None,
    features: list[str],
    columns: list[str],
    random_state: int,
) -> tuple[Transport, Certificate]:
    """Return the transport of all rows, and the certificate of one that was fitted without the held-out rows."""
    held = np.random.default_rng(random_state).permutation(len(x)) < HELD_OUT * len(x)

    def fitted(rows: Any, k: int, begun: Transport | None = None) -> Transport:
        return fit_transport(
            x[rows], a[rows], weight[rows], n_removed, k,
            reference=reference, keeps_shares=method == "component", random_state=random_state, begun=begun,
        )  # fmt: skip

    best: tuple[float, Transport] | None = None
    place = 0
    candidates: list[dict[str, Any]] = []
    for k in _tried(n_components, method, len(x), x.shape[1]):
        transport = fitted(~held, k)
        density = transport.log_density(x[held], a[held])
        score = float(weight[held] @ density / weight[held].sum())
        candidates.append({"n_components": k, "log_likelihood": score})
        if best is not None and score < best[0] + WORTH:
            if len(candidates) - place > PATIENCE:
                break
            continue
        best, place = (score, transport), len(candidates)
    assert best is not None
    transport = best[1]
    certificate = measured(
        transport, x[held], a[held], method=method, features=features, columns=columns, candidates=candidates
    )
    return fitted(slice(None), certificate.n_components, transport), certificate


def _tried(n_components: int | str, method: str, n: int, d: int) -> list[int]:
    if method == "spread":
        return [1]
    if isinstance(n_components, int):
        return [n_components]
    return [k for k in CANDIDATES if k == 1 or k * (d + 2) * 5 < n]


def referred(design: Design, reference: dict[str, Any] | None) -> Floats | None:
    """Return the columns to remove (q,) of the reference's design row; None for the average."""
    if reference is None:
        return None
    if set(reference) != set(design.columns):
        raise ValueError(
            f"reference must have a value for each erased column, {list(design.columns)}, but has one for "
            f"{list(reference)}"
        )
    import pandas as pd

    row = pd.DataFrame({name: [reference[name]] for name in design.columns})
    part = next(iter(as_table(np.zeros((1, 1)), metadata=row).chunks(None)))
    return np.asarray(design.matrix(part).dense[0, : design.n_removed], dtype=np.float64)
