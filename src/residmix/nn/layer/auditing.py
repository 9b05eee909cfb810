"""`audit`: how well metadata can be predicted from a tensor before and after each residualizing layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from residmix.diagnostics.distances import distance_correlation
from residmix.erasure.transport.certificate import Certificate
from residmix.nn.layer import maps as mapping
from residmix.nn.layer.batch import Batch
from residmix.nn.layer.finalization import call, evaluating, residualizers, unspoken
from residmix.nn.layer.residualize import Residualize
from residmix.rows.sampled import at_random

__all__ = ["Audit", "LayerAudit", "Probes", "audit"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Probes:
    """How well the metadata can be predicted from a tensor, given the protected columns; 0 is not at all.

    Attributes
    ----------
    linear : float
        In-sample R^2 of the best predicted metadata column by least squares, which `finalize` makes 0.
    held_out : float
        Held-out R^2 of a ridge probe; negative means worse than the mean.
    neighbours : float
        Held-out R^2 of 10 nearest neighbours. For information: the layer has no guarantee for nonlinear probes.
    distance_correlation : float
        u-centred squared distance correlation (Székely & Rizzo 2014), within the levels of a discrete protected column.
    total : float
        In-sample R^2 without adjustment for the protected columns.
    """

    linear: float
    held_out: float
    neighbours: float
    distance_correlation: float
    total: float


@dataclass(frozen=True)
class LayerAudit:
    """Probes of one layer's input and output.

    Attributes
    ----------
    name : str
    rows, features : int
    chance : float
        Expected `Probes.linear` for features that are independent of the metadata: features / rows.
    mediated : float
        R^2(m ~ Y) R^2(Y ~ R), the part of R^2(m ~ R) that is due to a single protected column Y; 0 without one.
    before, after : Probes
    certificate : Certificate or None
        Of the transport that the layer ends with, see `finalize`.
    """

    name: str
    rows: int
    features: int
    chance: float
    mediated: float
    before: Probes
    after: Probes
    certificate: Certificate | None = None

    @property
    def adds(self) -> bool:
        """Whether a linear probe predicts the metadata better after the layer than before it, beyond chance.

        Errors of coefficients from n rows add k / n of a feature's variance, and a probe sums them over d features. So
        on new rows a layer can add about d / n to R^2 if there was nothing to remove.
        """
        return self.after.linear > self.before.linear + max(0.01, 0.5 * self.chance)


@dataclass(frozen=True)
class Audit:
    """Result of `audit`; print it for a table.

    Attributes
    ----------
    layers : tuple of LayerAudit
        One for each layer, in the order of the network: name, rows, features, and the probes before and after it.

    Examples
    --------
    >>> import torch
    >>> from residmix.nn import MetadataSequential, Residualize, audit, finalize
    >>> m = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).double()
    >>> network = MetadataSequential(torch.nn.Linear(1, 2), Residualize(2, num_metadata=1)).double()
    >>> drift = finalize(network, [(m, m)])
    >>> found = audit(network, [(m, m)])
    >>> [layer.name for layer in found.layers], found.layers[0].after.linear < 1e-9
    (['1'], True)
    """

    layers: tuple[LayerAudit, ...]

    @property
    def adding(self) -> tuple[str, ...]:
        """Names of the layers after which the metadata are easier to predict than before."""
        return tuple(layer.name for layer in self.layers if layer.adds)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict."""
        return {"layers": [asdict(layer) | {"adds": layer.adds} for layer in self.layers]}

    def __str__(self) -> str:
        lines = []
        for layer in self.layers:
            lines += [
                f"{layer.name}: {layer.rows} rows, {layer.features} features (R2 by chance {layer.chance:.3f})",
                f"  {'':28s}{'before':>9s}{'after':>9s}",
            ]
            for label, name in (
                ("linear probe, in sample", "linear"),
                ("linear probe, held out", "held_out"),
                ("10 neighbours, held out", "neighbours"),
                ("distance correlation^2", "distance_correlation"),
                ("R2(m ~ x), not given Y", "total"),
            ):
                lines.append(f"  {label:28s}{getattr(layer.before, name):9.3f}{getattr(layer.after, name):9.3f}")
            lines.append(f"  {'of which due to Y':28s}{'':9s}{layer.mediated:9.3f}")
            if layer.adds:
                lines.append(
                    "  metadata are easier to predict after this layer: finalize it on more rows, or leave it out"
                )
            if layer.certificate is not None:
                lines += ["  its transport:", *(f"  {line}" for line in str(layer.certificate).splitlines())]
        return "\n".join(lines)


def _centred(values: Array) -> Array:
    """`values` less their means, the mean's own rounding too."""
    gap = values - values.mean(0)
    return np.asarray(gap - gap.mean(0))


def _less(values: Array, basis: Array, cutoff: float = 1e-10) -> Array:
    """Residual of `values` on `basis` and an intercept, without directions below `cutoff` of the largest."""
    centred = _centred(values)
    if basis.shape[1] == 0:
        return centred
    inner = _centred(basis)
    scale = np.sqrt((inner**2).mean(0))
    u, s, _ = np.linalg.svd(inner / np.where(scale > 0, scale, 1.0), full_matrices=False)
    u = u[:, s > cutoff * max(s[0], 1e-300)]
    for _ in range(2):
        centred = centred - u @ (u.T @ centred)
    return centred


def _r2(target: Array, features: Array, cutoff: float = 1e-10) -> Array:
    """R^2 of each column of `target` on `features`, both centred; 0 for a constant target."""
    total = (target**2).sum(0)
    left = _less(target, features, cutoff)
    return np.where(total > 0, 1 - (left**2).sum(0) / np.where(total > 0, total, 1.0), 0.0)


def _held_out(target: Array, features: Array, predict: Callable[[Array, Array, Array], Array]) -> float:
    """Two-fold R^2 of the best-read column; rows alternate between the folds."""
    fold = np.arange(len(target)) % 2
    error = np.empty_like(target)
    for part in (0, 1):
        fit, test = fold != part, fold == part
        error[test] = target[test] - predict(features[fit], target[fit], features[test])
    total = (target**2).sum(0)
    return float(np.max(np.where(total > 0, 1 - (error**2).sum(0) / np.where(total > 0, total, 1.0), 0.0)))


def _ridge(features: Array, target: Array, new: Array) -> Array:
    u, s, vt = np.linalg.svd(features, full_matrices=False)
    weight = vt.T @ ((s / (s**2 + 1e-3 * len(features)))[:, None] * (u.T @ target))
    return np.asarray(new @ weight)


def _neighbours(features: Array, target: Array, new: Array) -> Array:
    squared = (features**2).sum(1) - 2 * new @ features.T
    nearest = np.argpartition(squared, min(10, len(features) - 1), axis=1)[:, :10]
    return np.asarray(target[nearest].mean(1))


def _distance_correlation(features: Array, metadata: Array, protected: Array) -> float:
    levels = np.unique(protected, axis=0)
    if protected.shape[1] and len(levels) > 20:
        return distance_correlation(_less(features, protected), _less(metadata, protected))
    groups = [(protected == level).all(1) for level in levels] if protected.shape[1] else [np.ones(len(features), bool)]
    return float(np.mean([distance_correlation(features[g], metadata[g]) for g in groups if g.sum() >= 10] or [np.nan]))


def _probes(features: Array, metadata: Array, protected: Array, part: NDArray[np.intp], cutoff: float) -> Probes:
    left, target = _less(features, protected), _less(metadata, protected)
    # Of a column that is constant, or a function of the protected ones, only rounding is left, which nothing predicts.
    target = np.where(np.sqrt((target**2).mean(0)) > 1e-12 * np.abs(metadata).max(0), target, 0.0)
    scale = np.sqrt((left**2).mean(0))
    standard = left / np.where(scale > 1e-12 * max(float(scale.max()), 1e-300), scale, np.inf)
    return Probes(
        linear=float(_r2(target, left, cutoff).max()),
        held_out=_held_out(target, standard, _ridge),
        neighbours=_held_out(target[part], standard[part], _neighbours),
        distance_correlation=_distance_correlation(features[part], metadata[part], protected[part]),
        total=float(_r2(metadata - metadata.mean(0), features, cutoff).max()),
    )


class _Tap:
    """Collects a layer's input, output and columns."""

    def __init__(self, layer: Residualize) -> None:
        self.layer = layer
        self.parts: list[tuple[Tensor, ...]] = []
        self.eps = 0.0
        self._under_way: list[tuple[Batch, Tensor]] = []

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the input, which the layer may overwrite."""
        names = dict(zip(("x", "metadata", "protected"), args, strict=False)) | kwargs
        columns = (names.get(name) for name in ("metadata", "protected", "sample_weight", "mask"))
        batch = self.layer.read(names["x"], *columns)
        self._under_way.append((batch, batch.features().cpu()[(batch.weight > 0).cpu()]))

    def after(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        batch, features = self._under_way.pop()
        rows = mapping.pooled(output.view(batch.x.shape), batch.maps, batch.mask)
        kept = (batch.weight > 0).cpu()
        self.eps = torch.finfo(output.dtype).eps
        self.parts.append((features, *(part.cpu()[kept] for part in (rows, batch.metadata, batch.protected))))

    def columns(self) -> tuple[Array, ...]:
        return tuple(torch.cat(part).numpy() for part in zip(*self.parts, strict=True))


def audit(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    max_rows: int = 2000,
    random_state: int = 0,
) -> Audit:
    """Measure how well metadata can be predicted from the input and output of every `Residualize` layer.

    The model is in evaluation mode. Even if the distance correlation is near zero, a linear probe may predict the
    metadata: small errors of coefficients show up in directions of low variance. So both are reported, with a held-out
    and a nonlinear probe. Run it on the data of `finalize`, where the linear probe is 0 up to rounding, and on new
    data, where it is about `chance`. There, a layer after which the metadata are easier to predict is marked, see
    `LayerAudit.adds`.

    Parameters
    ----------
    model : Module
    loader : iterable
        Yields batches with metadata and protected columns; it is read once.
    forward : callable, optional
        ``forward(model, batch)``; default ``model(*batch)`` or ``model(**batch)``.
    max_rows : int, default 2000
        Rows for the two quadratic figures (neighbours, distance correlation), drawn without replacement.
    random_state : int

    Returns
    -------
    Audit
        ``print`` it, or ``.to_dict()``.

    Notes
    -----
    Rows with ``sample_weight`` 0 are left out; other weights are ignored, so after a weighted `finalize` the linear
    probe is near 0, but not exactly 0.

    With a single protected column Y and in sample, R^2(m ~ R) = R^2(m ~ Y) R^2(Y ~ R): a protected column keeps the
    part of the metadata that it mediates.

    Examples
    --------
    >>> import torch
    >>> from residmix.nn import MetadataSequential, Residualize, finalize
    >>> _ = torch.manual_seed(0)
    >>> m = torch.randn(400, 1)
    >>> data = [(torch.cat([m + torch.randn(400, 1), torch.randn(400, 2)], 1).double(), m)]
    >>> net = MetadataSequential(Residualize(3, 1))
    >>> _ = finalize(net, data)
    >>> layer = audit(net, data).layers[0]
    >>> round(layer.before.linear, 1), abs(round(layer.after.linear, 10))
    (0.5, 0.0)
    """
    forward = forward or call
    taps: dict[str, _Tap] = {}
    handles = []
    layers = residualizers(model)
    for name, layer in layers.items():
        taps[name] = _Tap(layer)
        handles.append(layer.register_forward_pre_hook(taps[name].before, with_kwargs=True))
        handles.append(layer.register_forward_hook(taps[name].after))
    try:
        with evaluating(model), unspoken(layers.values()):
            for batch in loader:
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return Audit(tuple(_audited(name, tap, max_rows, random_state) for name, tap in taps.items() if tap.parts))


def _without_rounding(values: Array, size: Array, eps: float) -> Array:
    """`values` with columns put to 0 whose spread is rounding: of numbers as large as the layer's input, `size`."""
    return np.where(np.sqrt((_centred(values) ** 2).mean(0)) > 32 * eps * size, values, 0.0)


def _audited(name: str, tap: _Tap, max_rows: int, random_state: int) -> LayerAudit:
    before, after, metadata, protected = tap.columns()
    rows, features = before.shape
    size = np.sqrt((before**2).mean(0))
    before, after = (_without_rounding(part, size, tap.eps) for part in (before, after))
    part = at_random(rows, max_rows, np.random.default_rng(random_state))
    # As numpy's matrix_rank: directions of the size of rounding errors aren't features.
    cutoff = tap.eps * max(rows, features)
    mediated = 0.0
    if protected.shape[1]:
        through = _r2(metadata - metadata.mean(0), protected)
        mediated = float(through.max() * _r2(protected - protected.mean(0), after, cutoff).max())
    return LayerAudit(
        name,
        rows,
        features,
        min(1.0, features / max(rows - 1, 1)),
        mediated,
        _probes(before, metadata, protected, part, cutoff),
        _probes(after, metadata, protected, part, cutoff),
        getattr(getattr(tap.layer, "carried", None), "certificate", None),
    )
