"""Activation checkpointing repeats the forward pass in the backward pass: find the state of the first run."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residmix.nn import _torch

__all__ = ["CORNER", "Recall", "mark_of", "may_return"]

Kept = TypeVar("Kept")
Mark = Tensor | NDArray[np.floating]

# Of a batch, that many rows and features tell it from others; recomputed ones may differ by rounding.
CORNER, _SAME = 16, 1e-2


def may_return() -> bool:
    """Whether this forward pass may be run again: checkpointing forgoes the graph, or has hooks that make it anew."""
    return not torch.compiler.is_compiling() and (not torch.is_grad_enabled() or _torch.saved_tensors_hooked())


def mark_of(x: Tensor, design: Tensor) -> Tensor:
    """Some numbers of a batch that tell it from other ones, float64."""
    corner = x.detach()
    while corner.ndim > 2:
        corner = corner.select(-1, 0)
    return torch.cat([part[:CORNER, :CORNER].flatten().double() for part in (corner, design)])


class Recall(Generic[Kept]):
    """What the latest batches were corrected with.

    A layer that runs on several batches before the backward pass (two views of a picture, say) has moved on when the
    first is recomputed.

    Parameters
    ----------
    most : int
        Batches to remember.

    Examples
    --------
    >>> import torch
    >>> recall = Recall(2)
    >>> for number in (1.0, 2.0):
    ...     recall.keep(torch.tensor([number]), f"state {number}")
    >>> recall.find(torch.tensor([1.001]))
    'state 1.0'
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._latest: deque[tuple[Mark, Kept]] = deque(maxlen=most)

    @property
    def again(self) -> bool:
        """Whether the forward pass under way is a recomputed one."""
        return not torch.compiler.is_compiling() and bool(self._latest) and _torch.recomputing()

    def keep(self, mark: Mark, kept: Kept) -> None:
        self._latest.append((mark, kept))

    def find(self, mark: Mark) -> Kept:
        """What was kept for the batch of this mark.

        Raises
        ------
        RuntimeError
            When none of the latest batches has it.
        """
        # Selective checkpointing allows no operation that the first run didn't have, and watches in a dispatch mode.
        with _torch.without_modes():
            wanted = _numbers(mark)
            best, least = None, _SAME * np.abs(wanted).max(initial=0.0)
            for other, kept in reversed(self._latest):
                if len(other) == len(wanted):
                    distance = np.abs(_numbers(other) - wanted).max(initial=0.0)
                    if distance < least or (best is None and distance == least):
                        best, least = kept, distance
        if best is None:
            raise RuntimeError(
                f"activation checkpointing recomputes a batch that isn't among the last {self.most} of this layer, "
                "because the layer ran more often before the backward pass, or its input changed "
                "(preserve_rng_state=False?); leave the layer out of the checkpointed part"
            )
        return best


def _numbers(mark: Mark) -> NDArray[np.float64]:
    return np.asarray(np.nan_to_num(mark.cpu().numpy() if isinstance(mark, Tensor) else mark.astype(np.float64)))
