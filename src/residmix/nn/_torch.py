"""Every private name of torch that the package uses, each with a fallback for a release that lacks it.

What a fallback doesn't know it answers so that results stay right: then something is remembered or copied in vain.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.utils import _python_dispatch as dispatch

__all__ = [
    "buffers",
    "dispatch_watched",
    "forward_hooks",
    "hooked",
    "hooked_globally",
    "recomputing",
    "saved_tensors_hooked",
    "without_modes",
]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")


def buffers(module: nn.Module) -> Mapping[str, Any]:
    """Buffers of `module` itself, by name; the way by `getattr` takes a microsecond for each."""
    own = getattr(module, "_buffers", None)
    return own if own is not None else dict(module.named_buffers(recurse=False))


def forward_hooks(module: nn.Module) -> Collection[Any]:
    """Forward hooks of `module`."""
    return getattr(module, "_forward_hooks", {}).values()


def hooked(module: nn.Module) -> bool:
    """Whether `module` has hooks."""
    return any(getattr(module, name, True) for name in _HOOKS)


def hooked_globally() -> bool:
    """Whether there are hooks on all modules."""
    ask = getattr(modules, "_has_any_global_hook", None)  # torch 2.8
    return bool(ask()) if ask else any(getattr(modules, name, True) for name in _GLOBAL)


def dispatch_watched() -> bool:
    """Whether a mode sees every operation, as that of selective checkpointing does."""
    count = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return bool(count()) if count else True


def without_modes() -> AbstractContextManager[Any]:
    """Keep operations inside from the modes that watch."""
    disable: Callable[[], AbstractContextManager[Any]] = getattr(dispatch, "_disable_current_modes", nullcontext)
    return disable()


def saved_tensors_hooked() -> bool:
    """Whether what autograd saves goes through hooks, which may make it anew."""
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return top(True) is not None if top else True


def recomputing() -> bool:
    """Whether an activation is being recomputed for a backward pass."""
    task = getattr(torch._C, "_current_graph_task_id", None)
    # What torch.utils.checkpoint itself asks.
    return task() != -1 if task else _called_by_checkpoint()


def _called_by_checkpoint() -> bool:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        own = frame.f_globals.get("__name__") == "torch.utils.checkpoint"
        if own and frame.f_code.co_name in ("backward", "unpack_hook"):
            return True
    return False
