"""Compiled loops, each beside its twin in numpy, and which of the two does the work.

A twin defines what a loop computes, and tests compare the two. It is used for problems so small that compiling would
take longer than fitting, and where nothing can be compiled. Results agree up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from residmix.errors import ResidmixWarning, warn_once
from residmix.kernels import levels, plain, rosenblatt, trees, twice

__all__ = [
    "PAIRS",
    "Pair",
    "add_effects",
    "centred_products",
    "check_compilers",
    "full_joint",
    "full_of_vector",
    "full_parameters",
    "full_sums",
    "level_products",
    "locate_levels",
    "products_twice",
    "rescale_rows",
    "residual_twice",
    "rows_of_scores",
    "scaled_joint",
    "scaled_sums",
    "scores_of_rows",
    "single_sums",
    "small",
    "split_nodes",
    "squared_distances",
    "subtract_rows",
    "sum_levels",
    "tell_uncompiled",
    "tied_gram",
    "turn_axes",
    "vector_of_full",
]

# Rows x features x components up to which a fit runs the twins. They are slower there already, by a few milliseconds a
# fit; but a process that finds nothing compiled yet is spared seconds, and any process the import of the compiler.
SMALL = 8_000


def small(n_rows: int | None, width: int) -> bool:
    """Tell whether a fit of this number of rows and work per row uses numpy instead of compiled loops.

    Decided once per fit, not by block, worker or compilation state, so that results don't depend on these. An unknown
    number of rows counts as large.
    """
    return n_rows is not None and n_rows * width <= SMALL


class Pair:
    """A compiled loop and its twin.

    Attributes
    ----------
    twin : callable
        In numpy.
    home : str
        Module of the loop, imported when it is needed first.
    """

    def __init__(self, twin: Callable[..., Any], home: str) -> None:
        self.twin, self.home, self.name = twin, home, twin.__name__
        self._run: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any, plain: bool = False) -> Any:
        """Run the loop; or the twin if it is asked for, or nothing can be compiled."""
        if plain:
            return self.twin(*arguments)
        if self._run is None:
            return self._first(arguments)
        return self._run(*arguments)

    def _first(self, arguments: tuple[Any, ...]) -> Any:
        try:
            loop = self.loop()
            result = loop(*arguments)
        except MemoryError:
            raise
        # whatever moved inside a compiler may be missing in any way
        except Exception as error:
            self._run = self.twin
            tell_uncompiled(error)
            return self.twin(*arguments)
        self._run = loop
        return result

    def loop(self) -> Callable[..., Any]:
        """Return the compiled loop.

        Raises
        ------
        ImportError
            If compilers are switched off or not there.
        """
        check_compilers()
        found: Callable[..., Any] = getattr(import_module(self.home), self.name)
        return found


def check_compilers() -> None:
    """Raise ImportError if compilers are switched off."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise ImportError("NUMBA_DISABLE_JIT is set")


def tell_uncompiled(error: Exception) -> None:
    """Warn once a process that the twins do the work of the loops."""
    warn_once(
        f"numba can't compile the loops ({type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])}), so "
        "plain numpy is used instead, which is several times slower. Install a version of numba that residmix was "
        "tested with",
        ResidmixWarning,
        kind="nothing compiled",
    )


_BLOCKS, _ROWWISE, _LEVELS, _PRODUCTS, _TWICE, _ROSENBLATT = (
    f"residmix.kernels.loops.{name}" for name in ("blocks", "rowwise", "levels", "products", "twice", "rosenblatt")
)

full_sums = Pair(plain.full_sums, _BLOCKS)
full_joint = Pair(plain.full_joint, _BLOCKS)
single_sums = Pair(plain.single_sums, "residmix.kernels.loops.single")
scaled_sums = Pair(plain.scaled_sums, _BLOCKS)
scaled_joint = Pair(plain.scaled_joint, _BLOCKS)
tied_gram = Pair(plain.tied_gram, _BLOCKS)
squared_distances = Pair(plain.squared_distances, _BLOCKS)
centred_products = Pair(plain.centred_products, _PRODUCTS)
subtract_rows = Pair(plain.subtract_rows, _ROWWISE)
add_effects = Pair(plain.add_effects, _ROWWISE)
level_products = Pair(levels.level_products, _LEVELS)
rescale_rows = Pair(levels.rescale_rows, _LEVELS)
locate_levels = Pair(plain.locate_levels, _ROWWISE)
sum_levels = Pair(plain.sum_levels, _ROWWISE)

residual_twice = Pair(twice.residual_twice, _TWICE)
products_twice = Pair(twice.products_twice, _TWICE)
full_parameters = Pair(plain.full_parameters, "residmix.kernels.loops.parameters")
vector_of_full = Pair(plain.vector_of_full, "residmix.kernels.loops.vectors")
full_of_vector = Pair(plain.full_of_vector, "residmix.kernels.loops.vectors")
turn_axes = Pair(plain.turn_axes, "residmix.kernels.loops.orientation")
scores_of_rows = Pair(rosenblatt.scores_of_rows, _ROSENBLATT)
rows_of_scores = Pair(rosenblatt.rows_of_scores, _ROSENBLATT)
split_nodes = Pair(trees.split_nodes, "residmix.kernels.loops.trees")

#: All of them, for whoever checks them.
PAIRS = (
    *(
        full_sums,
        full_joint,
        full_parameters,
        vector_of_full,
        full_of_vector,
        single_sums,
        scaled_sums,
        scaled_joint,
        tied_gram,
        squared_distances,
    ),
    *(centred_products, level_products, subtract_rows, rescale_rows, add_effects, locate_levels, sum_levels),
    *(residual_twice, products_twice, turn_axes, scores_of_rows, rows_of_scores, split_nodes),
)
