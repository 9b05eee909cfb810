"""How many threads work, and how BLAS is kept to one thread in each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["n_threads", "one_blas_thread"]


def n_threads() -> int:
    """Return ``RESIDMIX_NUM_THREADS`` if set, else the number of processors this process may use."""
    asked = os.environ.get("RESIDMIX_NUM_THREADS")
    if asked is None:
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    if not asked.isdigit() or int(asked) == 0:
        raise ValueError(f"RESIDMIX_NUM_THREADS must be a positive whole number, not {asked!r}")
    return int(asked)


@cache
def _controller() -> Any:
    import scipy.linalg  # noqa: F401 - loads its own BLAS, which must be found below
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread: we thread over blocks, and nested thread pools collapse (18-30x slower)."""
    with _controller().limit(limits=1, user_api="blas"):
        yield
