r"""Permutations drawn from a conditional distribution, by swaps of pairs.

Values :math:`v_{\pi(i)}` stand at places i with the probability :math:`\prod_i p(v_{\pi(i)} \mid i)`. A step pairs all
places at random and swaps the values of a pair with the probability that leaves this distribution what it is,

.. math:: \frac{o}{1 + o}, \qquad o = \frac{p(v_b \mid a)\, p(v_a \mid b)}{p(v_a \mid a)\, p(v_b \mid b)}

(Berrett, Wang, Barber & Samworth 2020, "The conditional permutation test for independence while controlling for
confounders", J. R. Stat. Soc. B 82:175). For normal and multinomial values :math:`\log o = -(r_a - r_b)'(g_a - g_b)`,
with r of the value and g of the place: nothing of the size rows x rows is ever needed. From the data some steps lead to
a hub, and from there as many to each permutation, so that data and permutations can be exchanged whatever the number of
steps is: the test keeps its level. Rows are cut into blocks, in random order, and permuted within.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.rows.ordered import ordered_map

__all__ = ["Swaps", "permuted_products"]

Floats = NDArray[np.float64]

# Rows of a block, and numbers that its permutations take at most.
BLOCK_ROWS = 2048
ENTRIES = 1 << 20
# Tells these random numbers from those of data that were simulated with the same seed.
STREAM = 0x5A4B5


@dataclass(frozen=True)
class Swaps:
    """What decides swaps, and what is computed of the permutations.

    Attributes
    ----------
    r : ndarray (n, q)
        Of the values.
    g : ndarray (n, q)
        Of the places.
    carried : ndarray (n, a)
        Goes with the values.
    basis : ndarray (n, c)
        Stays.
    """

    r: Floats
    g: Floats
    carried: Floats
    basis: Floats


def permuted_products(swaps: Swaps, n_permutations: int, n_steps: int, seed: int) -> Floats:
    """Return ``basis' carried`` of each permutation, (n_permutations, c, a)."""
    n = len(swaps.r)
    order = np.random.default_rng([seed, STREAM]).permutation(n)
    size = int(np.clip(ENTRIES // n_permutations, 64, BLOCK_ROWS))
    blocks = np.array_split(order, max(round(n / size), 1))

    def of_block(b: int) -> Floats:
        return _of_block(swaps, blocks[b], n_permutations, n_steps, np.random.default_rng([seed, STREAM, b]))

    total = np.zeros((n_permutations, swaps.basis.shape[1], swaps.carried.shape[1]))
    for products in ordered_map(of_block, range(len(blocks))):
        total += products
    return total


def _of_block(swaps: Swaps, rows: NDArray[np.intp], m: int, n_steps: int, random: np.random.Generator) -> Floats:
    r, g = swaps.r[rows].astype(np.float32), swaps.g[rows].astype(np.float32)
    pairs = [random.permutation(len(rows))[: len(rows) // 2 * 2].reshape(2, -1) for _ in range(n_steps)]
    hub = np.arange(len(rows), dtype=np.int32)[:, None]
    for pair in reversed(pairs):
        _step(hub, r, g, pair, random)
    places = np.repeat(hub, m, axis=1)
    for pair in pairs:
        _step(places, r, g, pair, random)
    carried, basis = swaps.carried[rows], swaps.basis[rows]
    return np.stack([basis.T @ carried[:, j][places] for j in range(carried.shape[1])], axis=-1).swapaxes(0, 1)


def _step(
    places: NDArray[np.int32],
    r: NDArray[np.float32],
    g: NDArray[np.float32],
    pair: NDArray[np.intp],
    random: np.random.Generator,
) -> None:
    """Swap the values at paired places, in each of the permutations (rows, m), in place."""
    one, two = places[pair[0]], places[pair[1]]
    log_odds = np.zeros(one.shape, dtype=np.float32)
    for q in range(r.shape[1]):
        column = r[:, q]
        log_odds += (column[two] - column[one]) * (g[pair[0], q] - g[pair[1], q])[:, None]
    np.negative(log_odds, out=log_odds)
    with np.errstate(over="ignore"):
        np.exp(log_odds, out=log_odds)
    log_odds += 1
    log_odds *= random.random(one.shape, dtype=np.float32)
    swapped = log_odds < 1
    places[pair[0]] = np.where(swapped, two, one)
    places[pair[1]] = np.where(swapped, one, two)
