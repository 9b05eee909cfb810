"""How many threads work, and how BLAS is kept to one thread in each of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator, contextmanager
from functools import cache
from typing import Any, Generic, TypeVar, overload

__all__ = ["as_worker", "by_worker", "lazy", "n_threads", "one_blas_thread", "worker_pool"]

Part = TypeVar("Part")
Result = TypeVar("Result")


class lazy(Generic[Result]):
    """A property that is computed once, as `functools.cached_property`, without a lock.

    That of Python 3.11 has one lock for all objects: threads wait for each other's, and a process that was forked while
    one was computed waits for ever. Here two threads may compute the same value, and one of the two is kept.
    """

    def __init__(self, function: Callable[[Any], Result]) -> None:
        self._function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> lazy[Result]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Result: ...

    def __get__(self, instance: object | None, owner: type) -> lazy[Result] | Result:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._function(instance)
        return value


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


def _free_control() -> None:
    """Let any thread change the limit, which is the process's: threadpoolctl from 3.8 on heeds only the first that
    did, for as long as that lives, and silently does nothing for the others.
    """
    from threadpoolctl import OpenBLASController

    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)


class _BlasLimit:
    """One thread while anyone is inside, so that entering again costs nothing and threads may come and go."""

    def __init__(self) -> None:
        self._lock, self._inside, self._limiter = threading.Lock(), 0, None

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                controller = _controller()
                _free_control()
                self._limiter = controller.limit(limits=1, user_api="blas")
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside = max(0, self._inside - 1)
            if self._inside == 0:
                self._restore()

    def forked(self) -> None:
        """Begin anew in a child: those who were inside, or held the lock, are threads of its parent only."""
        if self._inside:
            self._restore()
        self.__init__()  # type: ignore[misc]

    def _restore(self) -> None:
        if self._limiter is not None:
            _free_control()
            self._limiter.restore_original_limits()
            _free_control()  # nobody waits for us
            self._limiter = None


_LIMIT = _BlasLimit()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _LIMIT.forked())


class one_blas_thread(ContextDecorator):
    """Limit BLAS to one thread: we thread over blocks, and nested thread pools collapse (18-30x slower)."""

    def __enter__(self) -> None:
        _LIMIT.enter()

    def __exit__(self, *raised: object) -> None:
        _LIMIT.leave()


_WORKER = threading.local()


def _mark_worker() -> None:
    _WORKER.active = True


@contextmanager
def as_worker() -> Iterator[None]:
    """Count the calling thread among the workers for a while."""
    before = getattr(_WORKER, "active", False)
    _WORKER.active = True
    try:
        yield
    finally:
        _WORKER.active = before


@cache
def _pool(hands: int, _process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(hands, thread_name_prefix="residmix", initializer=_mark_worker)


def worker_pool() -> ThreadPoolExecutor | None:
    """Return this process's pool of `n_threads` workers, or None if one thread is all there is to use.

    That's so within a worker, too: work inside work runs where it is, or all workers could wait for each other.
    """
    hands = n_threads()
    if hands == 1 or getattr(_WORKER, "active", False):
        return None
    # a forked child has its parent's pool without its threads
    return _pool(hands, os.getpid())


def by_worker(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Return the function of each part, in order: by as many workers as there are, with one BLAS thread each."""
    pool = worker_pool()
    with one_blas_thread():
        return list(map(function, parts) if pool is None else pool.map(function, parts))
