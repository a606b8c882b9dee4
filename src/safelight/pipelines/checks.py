"""Checks of a request's numbers, shared by the pipelines."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from ..errors import InputError


def positive_int(what: str, value: Any) -> int:
    """`value` as an int ≥ 1, or an `InputError` that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InputError(f"{what} is {value!r}; a whole number of at least 1 is needed")
    return int(value)


def real(what: str, value: Any) -> float:
    """`value` as a finite float, or an `InputError` that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(f"{what} is {value!r}; a finite number is needed")
    return float(value)


def divisible(what: str, value: Any, by: int) -> int:
    """`value` as a positive int divisible by `by`; the error names the nearest size that works."""
    size = positive_int(what, value)
    if size % by:
        raise InputError(f"{what} is {size}, which is not divisible by {by}; {max(by, round(size / by) * by)} would do")
    return size


def strings(what: str, value: Any) -> list[str]:
    """One string or a non-empty list of strings, as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        shown = type(value).__name__ if not isinstance(value, Sequence) else [type(item).__name__ for item in value]
        raise InputError(f"{what} is of type {shown}; a string or a list of strings is needed")
    if not value:
        raise InputError(f"{what} is an empty list; give at least one string")
    return list(value)
