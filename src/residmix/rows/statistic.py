"""Statistic: a sum over rows, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from residmix.rows.block import Block

__all__ = ["Statistic", "after", "both"]

T = TypeVar("T")


@dataclass(frozen=True)
class Statistic(Generic[T]):
    """``merge(... merge(step(block 0), step(block 1)) ..., step(block n))``.

    Attributes
    ----------
    step : callable
        May run in any thread or process. On a cluster both must be picklable, as `merge` runs there, too.
    merge : callable
        May change and return its first argument.
    sound : callable, optional
        Returns True if the statistic of a block shows that all its features are valid numbers. Then blocks needn't be
        checked before `step`, but only where it is False.
    """

    step: Callable[[Block], T]
    merge: Callable[[T, T], T]
    sound: Callable[[T], bool] | None = None

    def of(self, change: Callable[[Block], Block]) -> Statistic[T]:
        """Return the statistic of ``change(block)``, which doesn't tell what the block held."""
        return replace(self, step=partial(after, change, self.step), sound=None)

    def beside(self, observe: Callable[[Block], list[Any]]) -> Statistic[tuple[T, list[Any]]]:
        """Return the statistic together with all that is observed, in order."""
        sound = self.sound
        return Statistic(
            partial(both, self.step, observe),
            partial(_merged, self.merge),
            None if sound is None else lambda both: sound(both[0]),
        )


def after(change: Callable[[Block], Block], step: Callable[[Block], T], block: Block) -> T:
    """Return ``step(change(block))``."""
    return step(change(block))


def both(step: Callable[[Block], T], observe: Callable[[Block], list[Any]], block: Block) -> tuple[T, list[Any]]:
    """Return a statistic of a block, and what is observed in it."""
    return step(block), observe(block)


def _merged(merge: Callable[[T, T], T], one: tuple[T, list[Any]], two: tuple[T, list[Any]]) -> tuple[T, list[Any]]:
    return merge(one[0], two[0]), one[1] + two[1]
