"""One training step of a layer's statistics on the CPU, compiled.

The arithmetic of `residmix.nn.layer.moments` and `residmix.nn.layer.gradient` for a small batch: a few hundred rows
times a few columns, which as operations of torch cost some hundred calls, most of them longer than their work, and
each layer of a network pays them in every step. Tests compare the two to rounding. Loops compile for float32 and
float64 features.
"""

# numba infers the types of what follows from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from residmix.kernels.compiled import compiled, piece
from residmix.nn.layer.gradient import Loss
from residmix.nn.layer.moments import CONSTANT

__all__ = ["lost", "step"]

# Features whose columns of a batch fit a core's cache.
_BLOCK = 256


@piece
def _root(value, least):
    """1 / sqrt(value) where it exceeds `least`, else 0."""
    return 1.0 / np.sqrt(value) if value > least else 0.0


@compiled
def _pseudo_inverse(matrix, least, ridge, values):
    """Inverse on the eigenvectors whose eigenvalue exceeds `least`; fills in the eigenvalues, 0 for the others."""
    k = len(matrix)
    inverse = np.zeros((k, k))
    if k == 1:
        kept = matrix[0, 0] > least
        values[0] = matrix[0, 0] if kept else 0.0
        inverse[0, 0] = 1.0 / (matrix[0, 0] + ridge) if kept else 0.0
        return inverse
    spectrum, vectors = np.linalg.eigh(matrix)
    for j in range(k):
        kept = spectrum[j] > least
        values[j] = spectrum[j] if kept else 0.0
        if kept:
            for a in range(k):
                for b in range(k):
                    inverse[a, b] += vectors[a, j] * vectors[b, j] / (spectrum[j] + ridge)
    return inverse


@piece
def _add(memory, design, features, weight, forget):
    """Forget, and add the moments of a batch: `residmix.nn.layer.moments.batch_moments` and `merge`."""
    n, q, d = len(weight), design.shape[1], features.shape[1]
    total = square = 0.0
    for i in range(n):
        total += weight[i]
        square += weight[i] * weight[i]
    divisor = total if total != 0.0 else 1.0
    old = memory.weight[0] * forget
    both = old + total
    gain = total / both if both != 0.0 else 0.0
    between = old * gain
    memory.weight[0] = both
    memory.square[0] = memory.square[0] * forget * forget + square
    # Columns of the design, centred; their means; how far those are from what was there.
    rows, moved = np.empty((n, q)), np.zeros(q)
    for a in range(q):
        center = rounding = 0.0
        for i in range(n):
            center += weight[i] / divisor * design[i, a]
        for i in range(n):
            rounding += weight[i] / divisor * (design[i, a] - center)
        for i in range(n):
            rows[i, a] = design[i, a] - center - rounding
        moved[a] = center + rounding - memory.mean[a]
        memory.mean[a] += moved[a] * gain
    for a in range(q):
        for b in range(q):
            memory.scatter[a, b] = memory.scatter[a, b] * forget + moved[a] * between * moved[b]
            for i in range(n):
                memory.scatter[a, b] += weight[i] * rows[i, a] * rows[i, b]
    # Features by blocks, which stay in the cache for the second visit.
    mean, deviation = np.empty(_BLOCK), np.empty(_BLOCK)
    spread, cross = np.empty(_BLOCK), np.empty((q, _BLOCK))
    for start in range(0, d, _BLOCK):
        width = min(_BLOCK, d - start)
        for j in range(width):
            mean[j] = spread[j] = 0.0
            for a in range(q):
                cross[a, j] = 0.0
        for i in range(n):
            share, row = weight[i] / divisor, features[i, start : start + width]
            for j in range(width):
                mean[j] += share * row[j]
        for i in range(n):
            own, row = weight[i], features[i, start : start + width]
            for j in range(width):
                deviation[j] = row[j] - mean[j]
                spread[j] += own * deviation[j] * deviation[j]
            for a in range(q):
                factor, sums = own * rows[i, a], cross[a]
                for j in range(width):
                    sums[j] += factor * deviation[j]
        for j in range(width):
            here = start + j
            change = mean[j] - memory.mean[q + here]
            memory.mean[q + here] += change * gain
            memory.spread[here] = memory.spread[here] * forget + spread[j] + between * change * change
            for a in range(q):
                was = memory.scatter[a, q + here] * forget
                memory.scatter[a, q + here] = was + cross[a, j] + moved[a] * between * change


@piece
def _solve(memory, p, ridge, rtol, limit):
    """Put the least-squares coefficients of the stored moments into the memory, as `layer.moments.solve`."""
    q, d = len(memory.scatter), memory.coef.shape[1]
    k = q - p
    scale, units = np.empty(q), np.empty(q)
    for a in range(q):
        least = CONSTANT * memory.mean[a]
        scale[a] = _root(memory.scatter[a, a], memory.weight[0] * least * least)
        units[a] = scale[a] * memory.scatter[a, a]
    rest, own, unused = np.empty((k, k)), np.empty((p, p)), np.empty(p)
    # Of the standardised metadata on the protected columns.
    slope, of_protected = np.zeros((p, k)), np.zeros((p, p))
    for a in range(p):
        for b in range(p):
            own[a, b] = scale[a] * memory.scatter[a, b] * scale[b]
    if p:
        of_protected = _pseudo_inverse(own, rtol, 0.0, unused)
        for a in range(p):
            for b in range(k):
                for c in range(p):
                    slope[a, b] += of_protected[a, c] * scale[c] * memory.scatter[c, p + b] * scale[p + b]
                memory.slope[a, b] = scale[a] * slope[a, b] * units[p + b]
    for a in range(k):
        for b in range(k):
            rest[a, b] = scale[p + a] * memory.scatter[p + a, p + b] * scale[p + b]
            for c in range(p):
                rest[a, b] -= slope[c, a] * scale[c] * memory.scatter[c, p + b] * scale[p + b]
            memory.remainder[a, b] = units[p + a] * rest[a, b] * units[p + b]
    inverse = _pseudo_inverse(rest, rtol, ridge, memory.spectrum)
    target = np.empty(d)
    for a in range(k):
        for j in range(d):
            memory.coef[a, j] = 0.0
    for b in range(k):
        for j in range(d):
            target[j] = scale[p + b] * memory.scatter[p + b, q + j]
        for c in range(p):
            for j in range(d):
                target[j] -= slope[c, b] * scale[c] * memory.scatter[c, q + j]
        for a in range(k):
            for j in range(d):
                memory.coef[a, j] += scale[p + a] * inverse[a, b] * target[j]
    _shrink(memory, scale, of_protected, p, limit)


@piece
def _shrink(memory, scale, of_protected, p, limit):
    """Take slopes for chance where they can't be told from 0, as `layer.moments.shrunk`."""
    (k, d), q = memory.coef.shape, len(memory.scatter)
    squares, rank = memory.square[0], 0
    for a in range(k):
        if memory.spectrum[a] > 0.0:
            rank += 1
    freedom = max(memory.weight[0] * memory.weight[0] / (squares if squares != 0.0 else 1.0) - q - 1.0, 1.0)
    for j in range(d):
        left, explained = memory.spread[j], 0.0
        for a in range(p):
            for b in range(p):
                first, second = scale[a] * memory.scatter[a, q + j], scale[b] * memory.scatter[b, q + j]
                left -= first * of_protected[a, b] * second
        for a in range(k):
            for b in range(k):
                explained += memory.coef[a, j] * memory.remainder[a, b] * memory.coef[b, j]
        chance = limit * max(rank, 1) * max(left - explained, 0.0)
        kept = max(1.0 - chance / max(explained * freedom, 1e-300), 0.0)
        memory.kept[j] = kept


@piece
def _left(memory, design, weight, p, total):
    """`left` of the loss, see `residmix.nn.layer.gradient`."""
    n, k = len(design), len(memory.coef)
    stored = memory.weight[0]
    per_row = 1.0 / stored if stored != 0.0 else 1.0
    rest, gram, scale = np.empty((n, k)), np.zeros((k, k)), np.empty(k)
    for b in range(k):
        scale[b] = _root(memory.scatter[p + b, p + b] * per_row, 0.0)
    for i in range(n):
        for b in range(k):
            rest[i, b] = design[i, p + b] - memory.mean[p + b]
            for a in range(p):
                rest[i, b] -= (design[i, a] - memory.mean[a]) * memory.slope[a, b]
        for a in range(k):
            for b in range(k):
                gram[a, b] += weight[i] * rest[i, a] * rest[i, b]
    for a in range(k):
        for b in range(k):
            gram[a, b] = scale[a] * (k * per_row * memory.remainder[a, b] + gram[a, b]) * scale[b]
    inverse, left = _pseudo_inverse(gram, 1e-10 * total, 0.0, np.empty(k)), np.zeros((n, k))
    for i in range(n):
        for a in range(k):
            for b in range(k):
                left[i, b] += memory.ready[0] * weight[i] * rest[i, a] * scale[a] * inverse[a, b] * scale[b]
    return left


@piece
def _removed(memory, change, level, removed):
    """``change @ coef`` as far as it is kept, and the features' mean where the `level` is removed."""
    (n, k), d = change.shape, removed.shape[1]
    row, start, slopes = np.empty(d), np.zeros(d), np.empty((k, d))
    for a in range(k):
        for j in range(d):
            slopes[a, j] = memory.coef[a, j] * memory.kept[j]
    for j in range(d):
        start[j] = memory.mean[len(memory.mean) - d + j] * memory.ready[0] if level else 0.0
    for i in range(n):
        out = removed[i]
        for j in range(d):
            row[j] = start[j]
        for a in range(k):
            factor, coef = change[i, a], slopes[a]
            for j in range(d):
                row[j] += factor * coef[j]
        for j in range(d):
            out[j] = row[j]


@piece
def _remember(memory, design, features, weight, count, p, horizon, warmup, ridge, rtol, limit):
    """Forget, add a batch and solve."""
    forget, aged, rows = 1.0, np.empty(len(weight)), 0.0
    rate = np.log1p(-1.0 / horizon) if horizon > 0.0 else 0.0
    for i in range(len(count)):
        rows += count[i]
    later = rows - 1.0
    for i in range(len(weight)):
        aged[i] = weight[i] * np.exp(rate * later)
        later -= count[i]
    if horizon > 0.0:
        forget = horizon / max(memory.weight[0], horizon) * np.exp(rate * rows)
    _add(memory, design, features, aged, forget)
    total, squares = memory.weight[0], memory.square[0]
    if total * total / (squares if squares != 0.0 else 1.0) >= warmup:
        _solve(memory, p, ridge, rtol, limit)
        memory.ready[0] = 1.0


@compiled
def step(
    memory, design, features, weight, count, p, horizon, warmup, ridge, rtol, limit, centred, level, project, update,
    removed,
):  # fmt: skip
    """Write what a batch is corrected by into `removed` (n, d), then let it enter the memory.

    Parameters
    ----------
    memory : Memory
    design : ndarray (n, p + k)
    features : ndarray (n, d)
    weight, count : ndarray (n,)
    p : int
    horizon : float
        0 to forget nothing.
    warmup, ridge, rtol, limit : float
    centred, level : bool
        Whether the metadata are centred, whether the features' mean is removed.
    project : bool
        Without it the loss is empty.
    update : bool

    Returns
    -------
    Loss
        What the gradient loses.
    """
    n, k = len(design), len(memory.coef)
    change, total = np.empty((n, k)), 0.0
    for i in range(n):
        total += weight[i]
        for a in range(k):
            change[i, a] = design[i, p + a] - (memory.mean[p + a] if centred else 0.0)
    _removed(memory, change, level, removed)
    share = np.empty(n if level else 0)
    for i in range(len(share)):
        share[i] = weight[i] / (total if total != 0.0 else 1.0)
    left = _left(memory, design, weight, p, total) if project else np.empty((0, k))
    kept = memory.kept.copy()
    if update:
        _remember(memory, design, features, weight, count, p, horizon, warmup, ridge, rtol, limit)
    return Loss(left, change, share, kept)


@compiled
def lost(left, change, share, kept, gradient, factor):
    """What the gradient of each row (n, d) loses, times `factor`, in its own precision."""
    (n, d), k = gradient.shape, change.shape[1]
    along, mean, row = np.zeros((k, d)), np.zeros(d), np.empty(d)
    out = np.empty_like(gradient)
    for i in range(n):
        own = gradient[i]
        for a in range(k):
            factor_here, sums = change[i, a], along[a]
            for j in range(d):
                sums[j] += factor_here * own[j]
        if len(share):
            for j in range(d):
                mean[j] += own[j]
    for a in range(k):
        for j in range(d):
            along[a, j] *= kept[j]
    for i in range(n):
        result = out[i]
        level = share[i] if len(share) else 0.0
        for j in range(d):
            row[j] = level * mean[j]
        for a in range(k):
            factor_here, sums = left[i, a], along[a]
            for j in range(d):
                row[j] += factor_here * sums[j]
        for j in range(d):
            result[j] = row[j] * factor
    return out
