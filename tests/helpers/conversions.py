"""Makes every tensor → Python conversion an error, or counts them: on a GPU each would wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Methods whose result is a Python value, or memory that the CPU can read.
_METHODS = {"cpu", "item", "tolist", "numpy", "__array__", "__dlpack__", "__contains__"}
_METHODS |= {"__bool__", "__complex__", "__float__", "__index__", "__int__"}
# Functions that make a tensor of numbers, and read those from tensors in a list.
_MAKERS = {"as_tensor", "asarray", "tensor"}
# Operations that answer with a Python value, or whose result has a shape that the values decide.
_OPERATIONS = {"_local_scalar_dense", "_is_all_true", "_is_any_true", "allclose", "equal", "is_nonzero", "item"}
_OPERATIONS |= {
    "_unique2",
    "bincount",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}


class Conversion(AssertionError):
    """A tensor's value was read."""


class _Functions(TorchFunctionMode):
    def __init__(self, owner: Conversions):
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, before = getattr(func, "__name__", ""), self.owner.inside
        if name in _METHODS or (name in _MAKERS and args and _has_tensor(args[0])):
            self.owner.found(name)
            self.owner.inside = True  # the operations that it is made of are no further ones
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.owner.inside = before


class _Operations(TorchDispatchMode):
    def __init__(self, owner: Conversions):
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _OPERATIONS or (name.startswith("index") and _by_mask(args)):
            self.owner.found(name)
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    several = [one for one in args if isinstance(one, (tuple, list))]
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for each in several for one in each)


def _has_tensor(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and any(
        isinstance(one, torch.Tensor) or _has_tensor(one) for one in values
    )


class Conversions:
    """A context in which more than `allowed` conversions raise `Conversion`; None allows all, for `names` to tell."""

    def __init__(self, allowed: int | None = 0):
        self.allowed = allowed
        self.names: list[str] = []
        self.inside = False
        self._modes = (_Operations(self), _Functions(self))

    def found(self, name: str) -> None:
        if self.inside:
            return
        self.names.append(name)
        if self.allowed is not None and len(self.names) > self.allowed:
            raise Conversion(f"values of tensors are read: {', '.join(self.names)}")

    def __enter__(self) -> Conversions:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
