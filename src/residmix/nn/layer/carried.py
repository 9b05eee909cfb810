"""A transport after a layer: its output gets a distribution that doesn't depend on the metadata."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from residmix.nn import _torch

if TYPE_CHECKING:
    from residmix.erasure.eraser import Eraser
    from residmix.erasure.transport.certificate import Certificate
    from residmix.nn.layer.residualize import Residualize

__all__ = ["Carried", "carry", "check_carried", "drop_carried", "restore_carried"]

NAME = "carried"


class Carried(nn.Module):
    """A fitted `residmix.Eraser`, kept as the bytes of its file, so that a checkpoint has it and no pickle is needed.

    Attributes
    ----------
    file : Tensor of uint8 (bytes,)
    """

    file: Tensor

    def __init__(self, file: Tensor) -> None:
        super().__init__()
        self.register_buffer("file", file)
        self._eraser: Eraser | None = None

    @classmethod
    def of(cls, eraser: Eraser) -> Carried:
        from residmix.persistence import save

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "eraser.safetensors"
            save(eraser, path)
            return cls(torch.from_numpy(np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()))

    @property
    def eraser(self) -> Eraser:
        if self._eraser is None:
            from residmix.persistence import load

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "eraser.safetensors"
                path.write_bytes(self.file.cpu().numpy().tobytes())
                self._eraser = load(path)
        return self._eraser

    @property
    def certificate(self) -> Certificate:
        return self.eraser.certificate_

    def forward(self, x: Tensor, metadata: Tensor) -> Tensor:
        rows = x.detach().double().reshape(len(x), -1).cpu().numpy()
        if not len(rows):
            return x
        moved = self.eraser.transform(rows, metadata=metadata.detach().double().cpu().numpy())
        return torch.from_numpy(moved).to(x).view(x.shape)


class _Hook:
    """Forward hook of the layer (an object, so that copies and pickles keep working)."""

    def __call__(self, layer: Residualize, args: tuple[Any, ...], given: dict[str, Any], output: Tensor) -> Tensor:
        update = given.get("update")
        carried = getattr(layer, NAME, None)
        if carried is None or (layer.training if update is None else update):
            return output
        names = dict(zip(("x", "metadata", "protected"), args, strict=False)) | given
        if names.get("metadata") is None:
            raise ValueError("metadata= is needed, since the layer ends with a transport")
        batch = layer.read(output, names["metadata"], None, None, names.get("mask"), fit=False)
        moved: Tensor = carried(output, batch.metadata)
        return moved


def check_carried(name: str, layer: Residualize) -> None:
    """Raise for a layer that doesn't support a transport."""
    if layer.num_protected:
        raise ValueError(
            f"layer {name!r} has protected columns, which a transport would need in evaluation; finalize it without "
            "transport"
        )
    if layer.maps != "element":
        raise ValueError(
            f"layer {name!r} has maps={layer.maps!r}, but a transport needs maps='element'; finalize it "
            "without transport"
        )


def carry(layer: Residualize, eraser: Eraser) -> None:
    """Let the layer's output in evaluation go through a fitted eraser."""
    _put(layer, Carried.of(eraser))


def _put(layer: nn.Module, carried: Carried) -> None:
    layer.add_module(NAME, carried)
    # which stays with the layer, and does nothing without an eraser
    if not any(isinstance(hook, _Hook) for hook in _torch.forward_hooks(layer)):
        layer.register_forward_hook(_Hook(), with_kwargs=True)


def drop_carried(layer: nn.Module) -> None:
    """Take such an eraser off again."""
    if getattr(layer, NAME, None) is not None:
        delattr(layer, NAME)


def restore_carried(layer: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    """Make room for what a checkpoint has, or take off what it hasn't."""
    file = state.get(f"{prefix}{NAME}.file")
    drop_carried(layer)
    if file is not None:
        _put(layer, Carried(file.detach().clone()))
