"""Optimised code: hand-written gradients, compiled steps, stacked parameters.

Everything here gives the same results as plain torch code elsewhere, up to rounding, and tests compare the two. With
``RESIDMIX_NN_FAST=0`` in the environment, or inside `plain`, the plain code runs instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["enabled", "plain"]

_on = os.environ.get("RESIDMIX_NN_FAST", "1") != "0"


def enabled() -> bool:
    """Whether the optimised code is used."""
    return _on


@contextmanager
def plain() -> Iterator[None]:
    """Use the plain code inside the block, in all threads."""
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before
