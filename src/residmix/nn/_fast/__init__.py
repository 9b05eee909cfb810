"""All that is there for speed: hand-written gradients, compiled steps, parameters side by side.

Everything here computes what plain torch computes elsewhere, to rounding, and tests hold the two together. With
``RESIDMIX_NN_FAST=0`` in the environment, or inside `plain`, nothing of it runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["enabled", "plain"]

_on = os.environ.get("RESIDMIX_NN_FAST", "1") != "0"


def enabled() -> bool:
    """Whether the fast ways are taken."""
    return _on


@contextmanager
def plain() -> Iterator[None]:
    """Take the plain ways inside, in all threads."""
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before
