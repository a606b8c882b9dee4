"""What scripts import from here: noise, and the module inside a compiled one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..randomness import randn_tensor

if TYPE_CHECKING:
    from torch import nn


def is_compiled_module(module: Any) -> bool:
    """Whether `module` came from `torch.compile`."""
    return hasattr(module, "_orig_mod")


def unwrap_module(module: nn.Module) -> nn.Module:
    """The module that was compiled, or `module` itself."""
    return module._orig_mod if is_compiled_module(module) else module  # type: ignore[return-value]


__all__ = ["is_compiled_module", "randn_tensor", "unwrap_module"]
