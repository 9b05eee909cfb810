"""The compiled loops of a training step: imported when they are needed first, and not where nothing can be compiled."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import check_compilers, tell_uncompiled

__all__ = ["Memory", "compiled"]

Array = NDArray[np.float64]


class Memory(NamedTuple):
    """What a layer remembers, see `residmix.nn.layer.moments.Moments` and `Solution`: its buffers, without copies."""

    weight: Array
    square: Array
    mean: Array
    scatter: Array
    spread: Array
    coef: Array
    slope: Array
    remainder: Array
    spectrum: Array
    kept: Array
    ready: Array


@cache
def compiled(double: bool) -> Any:
    """Return the module of the loops for doubles or for floats; None where they can't be compiled.

    They are tried on a row, as what a compiler lacks shows only there. A first step would wait for that, too.
    """
    try:
        check_compilers()
        from residmix.nn._fast import step

        one, square = np.ones(1), np.ones((1, 1))
        shapes: list[tuple[int, ...]] = [(1,), (1,), (2,), (1, 2), (1,), (1, 1), (0, 1), (1, 1), (1,), (1,), (1,)]
        memory = Memory(*map(np.ones, shapes))
        features = square.astype(np.float64 if double else np.float32)
        loss = step.step(
            memory, square, features, one, one, 0, 0.0, 0.0, 0.0, 1e-8, 0.0, True, True, True, True, features.copy()
        )
        step.lost(*loss, features, -1.0)
    except MemoryError:
        raise
    # whatever moved inside a compiler may be missing in any way
    except Exception as error:
        tell_uncompiled(error)
        return None
    return step
