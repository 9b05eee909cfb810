"""torch's threads don't survive a fork: the child would wait for them for ever, so it gets an error instead."""

from __future__ import annotations

import os

__all__ = ["refuse_after_fork"]

# The process that has used torch here, if any; a forked child inherits the number, which isn't its own.
_USER: list[int] = []


def refuse_after_fork() -> None:
    """Raise if this process was forked from one in which networks have been fitted or used.

    Raises
    ------
    RuntimeError
        With ways to start processes that work.
    """
    if not _USER:
        _USER.append(os.getpid())
    if _USER[0] != os.getpid():
        raise RuntimeError(
            "this process was forked from one that had used torch, whose threads don't survive a fork; start "
            "processes with multiprocessing.get_context('spawn'), or with joblib's default backend"
        )
