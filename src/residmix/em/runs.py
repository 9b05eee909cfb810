"""Checkpoints of EM fits, written after each iteration, so that a killed fit can be resumed."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from residmix.em.loop import EMState
from residmix.persistence import read, write
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["Journal", "fingerprint", "run_starts"]


@dataclass
class Journal:
    """Several runs of EM from several starts, so far.

    Attributes
    ----------
    fingerprint : str
        Identifies the fit.
    starts : tuple
        Parameters that the runs begin from.
    ended : list of (EMState or None)
        Results of the finished runs; None for failed ones.
    running : EMState or None
        State of the current run.
    revived : list of list
        Components re-seeded in each run so far: how often decides whether it's done again in the same run.
    """

    fingerprint: str
    starts: tuple[Any, ...]
    ended: list[Any] = field(default_factory=list)
    running: Any = None
    revived: list[Any] = field(default_factory=list)


def fingerprint(estimator: Any, rows: Rows, **more: Any) -> str:
    """Return a text that identifies a fit: class, relevant parameters, shape of the data and a digest of all rows.

    The digest costs one pass over the data, so that a checkpoint is never used with changed data. Empty if the
    estimator has no `checkpoint`.
    """
    if estimator.checkpoint is None:
        return ""
    quiet = ("checkpoint", "verbose", "verbose_interval")
    parameters = {name: _text(value) for name, value in estimator.get_params(deep=False).items() if name not in quiet}
    digest = hashlib.blake2b(rows.fold(_digest, operator.add), digest_size=16).hexdigest()
    shape = (rows.n_rows, rows.n_features, str(rows.dtype), rows.block_rows)
    return repr((type(estimator).__name__, sorted(parameters.items()), shape, digest, sorted(more.items())))


def _text(value: Any) -> str:
    if isinstance(value, np.random.RandomState):  # its repr is its place in memory
        value = value.get_state(legacy=False)
        value["state"]["key"] = value["state"]["key"].tolist()
    # numpy shortens long arrays in their repr
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)


def _digest(block: Block) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for array in (block.X, block.design, *block.codes, block.weight):
        found.update(b"-" if array is None else np.ascontiguousarray(array).data)
    return found.digest()


def run_starts(
    em: Any,
    starts: Callable[[], Iterable[Any]],
    run: Callable[[int, Any, Callable[[EMState[Any]], Any] | None], EMState[Any]],
    *,
    failure: type[Exception],
    path: str | os.PathLike[str] | None = None,
    fingerprint: str = "",
    spare: Callable[[int, list[EMState[Any]]], bool] = lambda i, ended: False,
) -> list[tuple[EMState[Any], list[Any]]]:
    """Run EM from every start; return how each ended that didn't fail, and which components were re-seeded in it.

    With a `path`, go on where a fit that was stopped had come to, bit for bit.

    Parameters
    ----------
    em : object with a list `revived`
    starts : callable
        Finds the parameters to begin from.
    run : callable
        ``run(i, start or EMState, callback) -> EMState``.
    failure : exception class
        A run that raises it is skipped; if all do, the last error is raised.
    path : path, optional
        A file written under a temporary name after each iteration and renamed; removed when the fit is done.
    fingerprint : str
        See :func:`fingerprint`.
    spare : callable
        Whether start number i and all later ones can be skipped, given the results of the earlier ones.

    Raises
    ------
    ValueError
        If the file belongs to another fit.
    """
    journal = None if path is None or not Path(path).exists() else _read(path, fingerprint)
    if journal is None:
        journal = Journal(fingerprint, () if path is None else tuple(starts()))
    # those that nobody asks for aren't even found
    ahead = iter(starts() if path is None else journal.starts[len(journal.ended) :])
    raised: Exception | None = None

    def keep(state: EMState[Any] | None) -> None:
        journal.running = state
        journal.revived[-1:] = [list(em.revived)]
        if path is not None:
            write(journal, path)

    for i in count(len(journal.ended)):
        if journal.running is None and spare(i, [state for state in journal.ended if state is not None]):
            break
        if (start := next(ahead, None)) is None:
            break
        if journal.running is None:
            journal.revived.append([])
        em.revived[:] = journal.revived[-1]
        begin = start if journal.running is None else journal.running
        try:
            journal.ended.append(run(i, begin, None if path is None else keep))
        except failure as error:
            journal.ended.append(None)
            raised = error
        keep(None)
    if path is not None:
        Path(path).unlink(missing_ok=True)
    # a journal of an earlier version may count fewer runs
    revived = [[]] * (len(journal.ended) - len(journal.revived)) + journal.revived
    ended = [(state, lost) for state, lost in zip(journal.ended, revived, strict=False) if state is not None]
    if not ended:
        raise raised or failure(
            "every start had failed before the fit was resumed; delete the checkpoint and fit again"
        )
    return ended


def _read(path: str | os.PathLike[str], expected: str) -> Journal:
    journal = read(path)
    if not isinstance(journal, Journal) or journal.fingerprint != expected:
        raise ValueError(
            f"the checkpoint {os.fspath(path)!r} belongs to another fit (its parameters or data differ, even if by "
            "one number that has changed); delete it, or use another path"
        )
    return journal
