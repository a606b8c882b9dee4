"""Which number format the machine is fast at, and which devices it has."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ConfigError, nearest

logger = logging.getLogger(__name__)

_ALIASES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
_NAMES = ("float32", "float16", "bfloat16", "float64")


@functools.cache
def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX-512 BF16, AMX or Arm's BF16)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = file.read()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def fast_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bfloat16 where `device` computes in it, float16 on older GPUs, else float32; never float16 on a CPU."""
    place = torch.device(device or "cpu")
    if place.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(place)[0] >= 8 else torch.float16
    if place.type == "cpu":
        return torch.bfloat16 if cpu_computes_bfloat16() else torch.float32
    return torch.float16 if place.type == "mps" else torch.float32


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device | str | None = None) -> torch.dtype | None:
    """A dtype from what users pass: a torch.dtype, its name, "auto" or None; else raises `ConfigError`."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    if isinstance(dtype, str) and dtype == "auto":
        return fast_dtype(device)
    name = str(dtype).removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in _NAMES:
        raise ConfigError(f"dtype is {dtype!r}; {nearest(name, (*_NAMES, 'auto'))}")
    return getattr(torch, name)


def resolve_device(device: torch.device | str | int | None, device_map: Any = None) -> torch.device | None:
    """The device that a caller means by `device`, or else by a `device_map` that names one; None for neither.

    Raises `ConfigError` for a device that does not exist here.
    """
    asked = device
    if device is None and device_map is not None:
        if isinstance(device_map, Mapping) and set(device_map) == {""}:
            device_map = device_map[""]
        if isinstance(device_map, Mapping) or device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
            logger.warning("device_map=%r: models are not split across devices here; pass device=…", device_map)
        else:
            asked = device_map
    if asked is None:
        return None
    try:
        found = torch.device(asked)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"there is no device {asked!r} here ({str(error).splitlines()[0]})") from error
    return found
