"""The loop that turns common axes; see its twin in `residmix.kernels.plain`."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from residmix.kernels.compiled import compiled

__all__ = ["turn_axes"]


@compiled
def turn_axes(W, D, precision):
    K, d, largest = len(W), len(D), 0.0
    for i in range(d):
        for j in range(i + 1, d):
            own, cross, other = 0.0, 0.0, 0.0
            for k in range(K):
                more = precision[k, i] - precision[k, j]
                own += more * W[k, i, i]
                cross += more * W[k, i, j]
                other += more * W[k, j, j]
            angle = 0.5 * np.arctan2(-2.0 * cross, other - own)
            c, s = np.cos(angle), np.sin(angle)
            if not abs(s) > 0.0:
                continue
            largest = max(largest, abs(s))
            for row in range(d):
                left, right = D[row, i], D[row, j]
                D[row, i], D[row, j] = c * left + s * right, c * right - s * left
            for k in range(K):
                for row in range(d):
                    left, right = W[k, row, i], W[k, row, j]
                    W[k, row, i], W[k, row, j] = c * left + s * right, c * right - s * left
                for column in range(d):
                    left, right = W[k, i, column], W[k, j, column]
                    W[k, i, column], W[k, j, column] = c * left + s * right, c * right - s * left
    return largest
