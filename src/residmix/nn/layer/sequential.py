"""Passing metadata to the layers: a `Sequential`, and hooks for existing models."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from residmix.errors import did_you_mean
from residmix.nn import _torch
from residmix.nn.layer.residualize import Residualize

__all__ = ["Attached", "MetadataSequential", "attach"]


# Modules whose output is a new tensor that they don't keep for their own backward pass.
_FRESH = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def _sees_alone(layer: nn.Module, before: nn.Module | None) -> bool:
    """Whether nothing but `layer` can hold the output of `before`."""
    # A compiler plans memory itself.
    if before is None or torch.compiler.is_compiling():
        return False
    return (
        type(before) in _FRESH
        and type(layer) is Residualize
        and not any(_torch.hooked(module) for module in (before, layer))
        # Somebody's own function in place of the method.
        and not any("forward" in vars(module) for module in (before, layer))
        and not _torch.hooked_globally()
        # A mode sees every tensor; that of selective checkpointing keeps some.
        and not _torch.dispatch_watched()
    )


class MetadataSequential(nn.Sequential):
    """`torch.nn.Sequential` whose `Residualize` layers, however deep, get the metadata passed to `forward`.

    A layer directly after a linear layer or a convolution overwrites its output, unless a hook or a dispatch mode might
    use it, or the layer has ``inplace=False``.

    Examples
    --------
    >>> import torch
    >>> from residmix.nn import Residualize
    >>> net = MetadataSequential(torch.nn.Linear(8, 4), Residualize(4, 2, num_protected=1), torch.nn.ReLU())
    >>> net(torch.randn(5, 8), torch.randn(5, 2), torch.randn(5, 1)).shape
    torch.Size([5, 4])
    """

    takes_metadata = True

    def forward(
        self,
        x: Any,
        metadata: Tensor | None = None,
        protected: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        mask: Tensor | None = None,
        update: bool | None = None,
    ) -> Any:
        """Output of the last module; the arguments are those of `Residualize.forward`."""
        options = {"sample_weight": sample_weight, "mask": mask, "update": update}
        given = {name: value for name, value in options.items() if value is not None}
        before = None
        for module in self:
            if not getattr(module, "takes_metadata", False):
                x = module(x)
            elif _sees_alone(module, before):
                x = module(x, metadata, protected, inplace=True, **given)
            else:
                x = module(x, metadata, protected, **given)
            before = module
        return x


class _Call(threading.local):
    """What the forward pass under way in this thread was given; empty between passes, so nothing stale can be used."""

    def __init__(self) -> None:
        self.arguments: dict[str, Any] | None = None
        self.reached: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Call, ()


class _Hook:
    """Forward hook that residualizes a module's output (an object, so that copies and pickles keep working)."""

    def __init__(self, name: str, layer: Residualize, under_way: _Call) -> None:
        self.name, self.layer, self.under_way = name, layer, under_way

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.under_way.arguments is None:
            raise RuntimeError(
                f"{self.name!r} has an attached Residualize layer, but was called directly; call the model that "
                "attach() returned, with metadata=... (for activation checkpointing use MetadataSequential)"
            )
        self.under_way.reached.add(self.name)
        # A packed sequence is a tuple, too.
        several = isinstance(output, tuple) and output and not isinstance(output, PackedSequence)
        first = output[0] if several else output
        if isinstance(first, Tensor) and first.is_nested:
            raise RuntimeError(
                f"the output of {self.name!r} is a nested tensor, which isn't supported; build the "
                "nn.TransformerEncoder with enable_nested_tensor=False, or attach to the whole encoder"
            )
        if isinstance(first, PackedSequence):
            raise TypeError(
                f"the output of {self.name!r} is a packed sequence, which isn't supported; use a padded sequence, "
                "and pass mask= for the valid positions"
            )
        if isinstance(output, Tensor):
            return self.layer(output, **self.under_way.arguments)
        if several and isinstance(first, Tensor):
            return (self.layer(output[0], **self.under_way.arguments), *output[1:])
        raise TypeError(
            f"the output of {self.name!r} is a {type(output).__name__}; it must be a tensor, or a tuple that starts "
            "with one"
        )


class Attached(nn.Module):
    """A model with `Residualize` layers after some of its modules; made by `attach`.

    Attributes
    ----------
    model : Module
        The model, with unchanged parameter names.
    layers : ModuleDict
        The layers, by module name with dots as underscores.
    """

    takes_metadata = True

    def __init__(self, model: nn.Module, layers: Mapping[str, Residualize]) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleDict({name.replace(".", "_"): layer for name, layer in layers.items()})
        self._under_way = _Call()
        self._names = tuple(layers)
        self._handles = [
            model.get_submodule(name).register_forward_hook(_Hook(name, layer, self._under_way))
            for name, layer in layers.items()
        ]

    def detach(self) -> nn.Module:
        """Remove the layers from the model, and return the model without its hooks.

        The layers stay in ``layers``. Modules that were trained with them expect their output.

        Examples
        --------
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> net = attach(model, "0", num_metadata=1)
        >>> net.detach() is model
        True
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
        """
        for handle in self._handles:
            handle.remove()
        self._names = ()
        return self.model

    def forward(
        self,
        *inputs: Any,
        metadata: Tensor | None = None,
        protected: Tensor | None = None,
        sample_weight: Tensor | None = None,
        mask: Tensor | None = None,
        update: bool | None = None,
        **named: Any,
    ) -> Any:
        """``model(*inputs, **named)``; the other arguments are those of `Residualize.forward`."""
        if not self._names:
            raise RuntimeError("the layers were detached; call the model itself, or attach again")
        self._under_way.arguments = {
            "metadata": metadata,
            "protected": protected,
            "sample_weight": sample_weight,
            "mask": mask,
            "update": update,
        }
        self._under_way.reached = set()
        try:
            output = self.model(*inputs, **named)
        finally:
            self._under_way.arguments = None
        missed = [name for name in self._names if name not in self._under_way.reached]
        if missed:
            raise RuntimeError(
                f"the forward pass did not run {missed[0]!r}, so nothing was residualized there; a fused fast path "
                "may skip submodules, so attach to the whole block"
            )
        return output


def _width(module: nn.Module) -> tuple[int, str] | None:
    """Features of a module's output and where they are."""
    for part in reversed(list(module.modules())):
        if isinstance(part, nn.RNNBase):
            return (part.proj_size or part.hidden_size) * (2 if part.bidirectional else 1), "token"
        if isinstance(part, nn.RNNCellBase):
            return part.hidden_size, "token"
        for name, maps in (
            ("out_channels", "channel"),
            ("out_features", "token"),
            ("num_features", "channel"),
            ("num_channels", "channel"),
            ("embed_dim", "token"),
            ("embedding_dim", "token"),
        ):
            size = getattr(part, name, None)
            if isinstance(size, int):
                return size, maps
        shape = getattr(part, "normalized_shape", None)
        if shape:
            # Of several axes (a map's channels and positions, say), each element has its own.
            return (int(shape[0]), "token") if len(shape) == 1 else (math.prod(shape), "element")
    return None


def attach(
    model: nn.Module,
    after: str | Sequence[str],
    num_metadata: int,
    *,
    num_features: int | None = None,
    maps: str | None = None,
    **options: Any,
) -> Attached:
    """Put a `Residualize` layer after a named module of an existing model.

    Parameters
    ----------
    model : Module
        Gets a forward hook; nothing else changes.
    after : str or sequence of str
        Names as in ``model.named_modules()``.
    num_metadata : int
    num_features, maps : optional
        Default: inferred from the last convolution, linear or normalisation layer inside the module. Convolutions are
        residualized per channel, linear layers and transformer blocks on the last axis (batch first), a layer norm over
        several axes per element. Of a tuple only the first tensor is residualized: the outputs of a recurrent layer,
        not its last states.
    **options
        Of `Residualize`.

    Returns
    -------
    Attached
        Call it like `model`, with ``metadata=`` (and in training ``protected=``) added.

    Examples
    --------
    >>> import torch
    >>> cnn = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(1))
    >>> net = attach(cnn, "0", num_metadata=2)
    >>> net(torch.randn(6, 1, 8, 8), metadata=torch.randn(6, 2)).shape
    torch.Size([6, 1])
    """
    known = {name: module for name, module in model.named_modules() if name}
    taken = [n for n, m in known.items() if any(isinstance(hook, _Hook) for hook in _torch.forward_hooks(m))]
    if taken:
        raise ValueError(
            f"the model already has a Residualize layer after {taken[0]!r}; build the model again, and name all "
            "modules in one call of attach"
        )
    layers: dict[str, Residualize] = {}
    for name in [after] if isinstance(after, str) else after:
        if name not in known:
            raise ValueError(f"the model has no module {name!r}{did_you_mean(name, known)}")
        for part in known[name].modules():
            # A recurrent layer deep inside may be read at its last step, which its reader says by maps=.
            layout = part is known[name] or maps is None
            ordered = isinstance(part, nn.MultiheadAttention) or (isinstance(part, nn.RNNBase) and layout)
            if ordered and not part.batch_first:
                raise ValueError(f"{name!r} has the batch on axis 1; Residualize needs it on axis 0 (batch_first=True)")
        found = _width(known[name])
        if found is None and num_features is None:
            raise ValueError(f"cannot infer the number of output features of {name!r}; pass num_features= and maps=")
        width, where = found or (0, "element")
        same = [other for other in layers if other != name and other.replace(".", "_") == name.replace(".", "_")]
        if same:
            raise ValueError(
                f"layers after {same[0]!r} and {name!r} would have the same name; rename one of these modules"
            )
        layers[name] = Residualize(num_features or width, num_metadata, maps=maps or where, **options)
    return Attached(model, layers)
