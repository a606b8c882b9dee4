"""Which number format the machine is fast at."""

from __future__ import annotations

import functools

import torch

from ..errors import ConfigError, nearest

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
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return fast_dtype(device)
    name = _ALIASES.get(dtype, str(dtype).removeprefix("torch."))
    if name not in _NAMES:
        raise ConfigError(f"dtype is {dtype!r}; {nearest(name, (*_NAMES, 'auto'))}")
    return getattr(torch, name)
