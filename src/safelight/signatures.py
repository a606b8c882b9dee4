"""Methods that are written once and show each class's own arguments to `help()` and to scripts that look."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any


def show(cls: type, name: str, positional: Mapping[str, Any], keywords: Mapping[str, Any]) -> None:
    """Give `cls` its own copy of a shared method, inherited or not, whose signature lists what this class takes."""
    original = getattr(cls, name, None)
    if not isinstance(original, types.FunctionType) or not hasattr(original, "_shared"):
        return
    own = types.FunctionType(original.__code__, original.__globals__, name, original.__defaults__, original.__closure__)
    own.__kwdefaults__, own.__doc__, own.__module__ = original.__kwdefaults__, original.__doc__, original.__module__
    own.__qualname__, own._shared = f"{cls.__name__}.{name}", True  # type: ignore[attr-defined]
    parameter = inspect.Parameter
    parameters = [parameter("self", parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [parameter(key, parameter.POSITIONAL_OR_KEYWORD, default=value) for key, value in positional.items()]
    parameters += [parameter(key, parameter.KEYWORD_ONLY, default=value) for key, value in keywords.items()]
    own.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    setattr(cls, name, own)


def shared(method: Any) -> Any:
    """Mark a method whose copies in subclasses show their own signature."""
    method._shared = True
    return method
