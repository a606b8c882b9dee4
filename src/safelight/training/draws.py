"""Randomness as a function of (seed, place in the run), so that a run resumed, or batched otherwise, stays the same."""

from __future__ import annotations

import hashlib
import math

import torch

_GOLDEN = (math.sqrt(5) - 1) / 2


def seed_for(seed: int, purpose: str, index: int) -> int:
    """A 63-bit seed for the `index`-th use of `purpose` in the run that was started with `seed`."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, purpose: str, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, purpose, index))


class Draws:
    """The random numbers of samples number `first` … `first + count − 1` of a run (counted over all epochs).

    Each sample has a generator of its own, so what it gets does not depend on the batch, micro-batch or worker that it
    falls into. Everything is drawn on the CPU: the numbers are the same whatever device trains.
    """

    def __init__(self, seed: int, first: int, count: int):
        self.seed, self.first, self.count = seed, first, count
        self._generators = [generator_for(seed, "sample", first + k) for k in range(count)]

    def normal(self, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers of `shape` per sample: (count, *shape)."""
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self._generators])

    def uniform(self) -> torch.Tensor:
        """One number in [0, 1) per sample: (count,)."""
        return torch.cat([torch.rand(1, generator=generator) for generator in self._generators])

    def stratified(self) -> torch.Tensor:
        """As `uniform`, but consecutive samples cover [0, 1) evenly: the low-discrepancy sequence {u + k·φ}.

        Lowers the variance of a loss averaged over timesteps (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
        """
        start = torch.rand(1, generator=generator_for(self.seed, "stratified", 0), dtype=torch.float64)
        places = torch.arange(self.first, self.first + self.count, dtype=torch.float64)
        return ((start + places * _GOLDEN) % 1.0).float().clamp(max=1 - 2**-24)

    def __getitem__(self, part: slice) -> Draws:
        """The draws of some of the samples, e.g. of a micro-batch; they continue where these stand."""
        chosen = object.__new__(Draws)
        start, stop, _ = part.indices(self.count)
        chosen.seed, chosen.first, chosen.count = self.seed, self.first + start, stop - start
        chosen._generators = self._generators[part]
        return chosen
