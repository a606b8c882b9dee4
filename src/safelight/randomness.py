"""Seeds -> one generator per image -> noise: independent of batch size and device."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from .errors import InputError

_SEED_LIMIT = 2**63  # torch takes larger ones on some devices only


def randn_tensor(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> torch.Tensor:
    """Standard normal noise of `shape` (batch first) on `device`.

    A CPU generator draws on the CPU whatever `device` is, so that its numbers do not depend on the device. A list gives
    every image its own generator; a list of one draws the whole batch. Raises `InputError` where the list does not fit
    the batch, or a generator lives on another device.
    """
    place = torch.device("cpu" if device is None else device)
    layout = torch.strided if layout is None else layout
    shape = tuple(shape)

    def draw(shape: tuple[int, ...], source: torch.Generator | None) -> torch.Tensor:
        if source is None:
            return torch.randn(shape, device=place, dtype=dtype, layout=layout)
        if source.device.type not in ("cpu", place.type):
            raise InputError(
                f"generator is on {source.device}, but the noise is wanted on {place}; use a CPU generator or {place}'s"
            )
        return torch.randn(shape, generator=source, device=source.device, dtype=dtype, layout=layout).to(place)

    if generator is None or isinstance(generator, torch.Generator):
        return draw(shape, generator)
    if len(generator) == 1:
        return draw(shape, generator[0])
    if len(generator) != shape[0]:
        raise InputError(f"generator is a list of {len(generator)}, but the batch has {shape[0]} images")
    return torch.cat([draw((1, *shape[1:]), one) for one in generator])


def generators(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """One CPU generator per image: image k of `seed` s is seeded s + k, or the k-th entry where `seed` is a list."""
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        seeds: list[int] = [int(seed) + k for k in range(count)]
    elif isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = list(seed)
    else:
        raise InputError(f"seed is {seed!r}; an integer, or a list with one for each image, is needed")
    if len(seeds) != count:
        raise InputError(f"seed is a list of {len(seeds)}, but {count} images are asked for")
    return [torch.Generator().manual_seed(check_seed(one)) for one in seeds]


def check_seed(seed: object) -> int:
    """`seed` as an int from 0 to 2⁶³ - 1; anything else is an `InputError`."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < _SEED_LIMIT:
        raise InputError(f"seed is {seed!r}; an integer from 0 to 2**63 - 1 is needed")
    return int(seed)


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (torch's on every device)."""
    number = check_seed(seed)
    random.seed(number)
    np.random.seed(number % 2**32)  # the widest that NumPy takes
    torch.manual_seed(number)
