"""`finalize`: refit every residualizing layer exactly, with the current encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from residmix.erasure.eraser import Eraser
from residmix.nn.layer.carried import carry, check_carried
from residmix.nn.layer.residualize import Residualize

Floats = NDArray[np.float64]

__all__ = ["call", "evaluating", "finalize", "residualizers", "unspoken"]


class _Reached(Exception):
    """Ends a forward pass once the layer in question has had its input."""


def call(model: nn.Module, batch: Any) -> Any:
    """Call `model` on what a loader yields: a mapping by keyword, a tuple or list by position."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def residualizers(model: nn.Module) -> dict[str, Residualize]:
    """The `Residualize` layers in `model`, by name."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Residualize)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Residualize layer; add one, or use attach")
    return layers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def unspoken(layers: Iterable[Residualize]) -> Iterator[None]:
    """Suppress the warning that layers aren't fitted yet."""
    before = [(layer, layer.speaks) for layer in layers]
    for layer, _ in before:
        layer.speaks = False
    try:
        yield
    finally:
        for layer, speaks in before:
            layer.speaks = speaks


def _order(model: nn.Module, layers: dict[str, Residualize], batch: Any, forward: Callable[..., Any]) -> dict[str, int]:
    """How often each layer is called in one forward pass, in the order of first calls."""
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    handles = [layer.register_forward_pre_hook(count(name)) for name, layer in layers.items()]
    try:
        forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    unused = [name for name in layers if name not in calls]
    if unused:
        raise ValueError(f"the forward pass never reaches layer {unused[0]!r}; freeze it with freeze(), or remove it")
    return calls


def finalize(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    freeze: bool = False,
    transport: str | None = None,
    n_components: int | str = "auto",
    random_state: int | None = 0,
) -> dict[str, float]:
    """Refit the coefficients of every `Residualize` layer on all of `loader`, encoder fixed, in place.

    Coefficients from training lag behind the encoder, so a linear probe may still predict the metadata from the
    residuals. After `finalize`, the partial covariance of each layer's output with the metadata, given the protected
    columns, is zero on the data of `loader`. Each layer is fitted after those before it, with one pass over the data
    per layer. If many features show no more association with the metadata than chance, the covariance is removed by a
    map of the features alone, since subtracting slopes would add their errors to new rows. Moments of earlier batches
    are discarded; dropout is off. It can also be called during training, for example every epoch.

    Parameters
    ----------
    model : Module
    loader : iterable
        A DataLoader or a list of batches with metadata and protected columns (which are needed as in training). It is
        read once per layer and once more to find the order, so it can't be a generator. With several processes each
        reads its shard.
    forward : callable, optional
        ``forward(model, batch)``; default ``model(*batch)`` or ``model(**batch)``.
    freeze : bool
        Also freeze the layers, so that later training doesn't change the coefficients.
    transport : {"spread", "component", "full"}, optional
        End each layer with a :class:`residmix.Eraser` of this method on its output: what forests and networks could
        still read of the metadata goes, as far as a mixture given the metadata sees it. One more pass for each layer.
        It acts in evaluation only, passes no gradients, and needs metadata there; `audit` shows its certificate.
        `reset`, and the next `finalize`, take it off. Not for layers that protect columns, nor for maps.
    n_components, random_state
        Of the transport.

    Returns
    -------
    dict of str to float
        Relative change of each layer's coefficients (the *drift*).

    Raises
    ------
    ValueError
        No layer to fit, a loader that can be read only once, a layer that the forward pass doesn't reach, or one whose
        output can't be transported. After an error the current layer is unchanged.

    Warns
    -----
    CertificateWarning
        If a transport failed its certificate.

    Examples
    --------
    >>> import torch
    >>> from residmix.nn import MetadataSequential, Residualize
    >>> _ = torch.manual_seed(0)
    >>> net = MetadataSequential(torch.nn.Linear(3, 2), Residualize(2, 1))
    >>> drift = finalize(net, [(torch.randn(50, 3), torch.randn(50, 1)) for _ in range(4)])
    >>> net[1].diagnostics()["effective_rows"]
    200.0
    """
    if isinstance(loader, Iterator):
        raise ValueError(
            "finalize needs several passes over the data; pass a DataLoader or a list instead of an iterator"
        )
    forward = forward or call
    layers = {name: layer for name, layer in residualizers(model).items() if not layer.frozen}
    if not layers:
        raise ValueError("every Residualize layer is frozen, so there is nothing to finalize; call freeze(False) first")
    if transport is not None:
        for name, layer in layers.items():
            check_carried(name, layer)
    drift: dict[str, float] = {}
    with evaluating(model), unspoken(layers.values()):
        first = next(iter(loader), None)
        if first is None:
            raise ValueError("the loader is empty; it must yield at least one batch")
        for name, calls in _order(model, layers, first, forward).items():
            layer = layers[name]
            before, state = layer.coefficients(), copy.deepcopy(layer.state_dict())
            try:
                layer.reset()
                layer.speaks = False
                layer.gather()
                _collect(model, layer, calls, loader, forward)
                layer.settle()
                if transport is not None:
                    rows, metadata, weight = _outputs(model, layer, loader, forward)
                    eraser = Eraser(method=transport, n_components=n_components, random_state=random_state)
                    carry(layer, eraser.fit(rows, metadata=metadata, sample_weight=weight))
            except BaseException:
                # A layer without coefficients would let everything through without a word.
                layer.load_state_dict(state)
                raise
            after = layer.coefficients()
            change = torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(after).clamp_min(1e-300)
            layer.drift.copy_(change)
            drift[name] = float(change)
            if freeze:
                layer.freeze()
    return drift


def _outputs(
    model: nn.Module, layer: Residualize, loader: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> tuple[Floats, Floats, Floats]:
    """Return what the layer puts out for all rows, their metadata and weights."""
    parts: list[tuple[torch.Tensor, ...]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: torch.Tensor) -> None:
        names = dict(zip(("x", "metadata", "protected"), args, strict=False)) | given
        batch = layer.read(output, *(names.get(name) for name in ("metadata", "protected", "sample_weight", "mask")))
        parts.append((batch.features().cpu(), batch.metadata.cpu(), batch.weight.cpu()))

    handle = layer.register_forward_hook(keep, with_kwargs=True)
    try:
        for batch in loader:
            forward(model, batch)
    finally:
        handle.remove()
    rows, metadata, weight = (torch.cat(part).double().numpy() for part in zip(*parts, strict=True))
    return rows, metadata, weight


def _collect(
    model: nn.Module, layer: Residualize, calls: int, loader: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> None:
    seen = 0

    def observe(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        layer.observe(*args, **{name: value for name, value in kwargs.items() if name != "update"})
        seen += 1
        if seen == calls:
            raise _Reached

    handle = layer.register_forward_pre_hook(observe, with_kwargs=True)
    try:
        for batch in loader:
            seen = 0
            with suppress(_Reached):
                forward(model, batch)
    finally:
        handle.remove()
