"""Members of an ensemble trained apart, some by each thread: they have nothing in common but the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from residmix.nn.density.network import MixtureDensityNetwork
from residmix.nn.regressor.training import History, Running, Sample, Schedule, train
from residmix.rows.threads import by_worker

__all__ = ["train_apart"]


# Members of a part. It isn't chosen by the number of threads, on which the last bits would depend then.
PART = 3


def train_apart(
    network: MixtureDensityNetwork,
    sample: Sample,
    held_out: NDArray[np.bool_],
    schedule: Schedule,
    seeds: Sequence[int],
    running: type[Running],
    *,
    hands: int,
) -> History:
    """Do what :func:`residmix.nn.regressor.training.train` does, in parts of a few members, by so many threads.

    Threads that share every small operation wait for each other in each; these never do. A member becomes what it would
    have become with all others, up to rounding; and the same to the bit, whatever the number of threads.
    """
    parts = np.array_split(np.arange(len(held_out)), -(-len(held_out) // PART))

    def trained(some: Sequence[NDArray[np.intp]]) -> list[tuple[MixtureDensityNetwork, History]]:
        torch.set_num_threads(1)  # which each thread has for itself
        return [_trained(part, network, sample, held_out, schedule, seeds, running) for part in some]

    shares = [parts[first::hands] for first in range(min(hands, len(parts)))]
    found = by_worker(trained, shares) if len(shares) > 1 else [trained(parts)]
    ended = [found[i % len(found)][i // len(found)] for i in range(len(parts))]
    for p, *own in zip(network.parameters(), *(one.parameters() for one, _ in ended), strict=True):
        p.data, p.grad = torch.cat([one.data for one in own]), None
    network.eval()
    return _joined([history for _, history in ended])


def _trained(
    part: NDArray[np.intp],
    network: MixtureDensityNetwork,
    sample: Sample,
    held_out: NDArray[np.bool_],
    schedule: Schedule,
    seeds: Sequence[int],
    running: type[Running],
) -> tuple[MixtureDensityNetwork, History]:
    """Return a network of these members alone, and how its training went."""
    own = deepcopy(network)
    for p in own.parameters():
        p.data = p.data[part]
    rows = sample if sample.X.dim() == 2 else replace(sample, X=sample.X[part])
    whose = f" of members {part[0] + 1} to {part[-1] + 1}" if part.size < len(held_out) else ""
    return own, train(own, rows, held_out[part], schedule, [seeds[m] for m in part], running, whose)


def _joined(histories: Sequence[History]) -> History:
    """Return one history of all members; some ended before others."""
    n_epochs = max(history.n_epochs for history in histories)
    ended = [[math.nan] * len(history.best_epoch) for history in histories]
    padded = [
        history.validation + [nothing] * (n_epochs - history.n_epochs)
        for history, nothing in zip(histories, ended, strict=True)
    ]
    return History(
        [[loss for record in records for loss in record] for records in zip(*padded, strict=True)],
        [epoch for history in histories for epoch in history.best_epoch],
        [loss for history in histories for loss in history.best_loss],
        n_epochs,
    )
