"""Brownian motion that is a function of its seed: halved intervals (Lévy's construction), as torchsde's trees have it.

A tree gives the same path whatever is asked of it, in whatever order: runs of more steps follow the same noise.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .errors import InputError

_DIGITS = 6  # of the times; halving ends there
_POOL = 24  # words of NumPy's seed sequences
_KEPT = 96  # halves: along the ends of the last interval, and one of the interval before, down to the finest

_Interval = tuple[float, float, torch.Tensor]  # start, end, and the increment between them


class BrownianTree:
    """Increments of a standard Brownian motion W on [`low`, `high`], for every number of a tensor of `shape`.

    They depend on nothing but the arguments. `seed` is one for the whole tensor, or a list with one for each row, which
    is then the same in every batch. Times are rounded to 10⁻⁶ and kept within the range. The last halves are
    remembered (at most 96 tensors), so that asking for neighbours in turn is fast; threads can share one tree.
    """

    def __init__(
        self, low: float, high: float, shape: Sequence[int], seed: int | Sequence[int], dtype: torch.dtype,
        device: torch.device | str,
    ):  # fmt: skip
        check_noise_seed("seed", seed)
        if not -math.inf < low <= high < math.inf:
            raise InputError(f"the range is from {low} to {high}; two finite numbers, the first not larger, are needed")
        self._batched = not isinstance(seed, int)
        self._seeds = [seed] if isinstance(seed, int) else list(seed)
        if self._batched and len(self._seeds) != shape[0]:
            raise InputError(f"{len(self._seeds)} noise seeds are given, but the batch has {shape[0]} rows")
        self._sizes, self._dtype, self._device = tuple(shape)[self._batched :], dtype, device
        whole = self._normal(()).mul_(math.sqrt(high - low))
        self._root: _Interval = (round(low, _DIGITS), round(high, _DIGITS), whole)
        self._known: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()
        self._lock = Lock()

    def increment(self, a: float, b: float) -> torch.Tensor:
        """W(b) − W(a)."""
        start, end, whole = self._root
        first, last = (min(max(round(t, _DIGITS), start), end) for t in (a, b))
        total = torch.zeros_like(whole)
        if first != last:
            for part in self._parts(self._root, 0, 0, min(first, last), max(first, last)):
                total.add_(part)
        return total if first <= last else total.neg_()

    def normalised(self, a: float, b: float) -> torch.Tensor:
        """(W(b) − W(a))/√|b − a|, which is standard normal; the length is taken in float32."""
        length = abs(np.float32(b) - np.float32(a))
        if not length:
            raise InputError(f"the interval from {a} to {b} is empty, so nothing random happens in it")
        return self.increment(a, b).div_(torch.tensor(length).sqrt())

    def _parts(self, node: _Interval, depth: int, place: int, a: float, b: float) -> Iterator[torch.Tensor]:
        """The increments of the largest intervals that fill [a, b], in their order, from the `node` at this place."""
        start, end, whole = node
        if a <= start and end <= b:
            yield whole
            return
        middle = round(0.5 * (end + start), _DIGITS)
        left = self._left_half(node, middle, (place, depth))
        if a < middle:
            yield from self._parts((start, middle, left), depth + 1, 2 * place, a, b)
        if b > middle:
            yield from self._parts((middle, end, whole - left), depth + 1, 2 * place + 1, a, b)

    def _left_half(self, node: _Interval, middle: float, key: tuple[int, int]) -> torch.Tensor:
        """The increment up to the `middle`: given W at both ends, W there is normal (the Brownian bridge)."""
        found = self._known.get(key)
        if found is None:
            start, end, whole = node
            left, right, share = middle - start, end - middle, 1 / (end - start)
            noise = self._normal(key).mul_(math.sqrt(left * right * share))
            found = (whole * left).mul_(share).add_(noise)  # rounding as in the reference
        with self._lock:
            self._known[key] = found
            self._known.move_to_end(key)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found

    def _normal(self, place: tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers that belong to a place in the tree."""
        rows = []
        for seed in self._seeds:
            sequence = np.random.SeedSequence(seed, spawn_key=place, pool_size=_POOL)
            generator = torch.Generator(self._device).manual_seed(int(sequence.generate_state(1)[0]))
            rows.append(torch.randn(self._sizes, dtype=self._dtype, device=self._device, generator=generator))
        return torch.stack(rows) if self._batched else rows[0]


# The tree that each owner drew from last. It changes no number: a tree remembers what neighbouring intervals need.
_TREES: WeakKeyDictionary[Any, tuple[Any, BrownianTree]] = WeakKeyDictionary()


def tree_of(owner: Any, low: float, high: float, like: torch.Tensor, seed: Any, dtype: torch.dtype) -> BrownianTree:
    """The tree of these arguments, in the shape of `like`; kept while `owner` lives and no other is asked for."""
    arguments = (low, high, like.shape, seed, dtype, like.device)
    known, tree = _TREES.get(owner, (None, None))
    if tree is None or known != arguments:
        tree = BrownianTree(*arguments)
        _TREES[owner] = arguments, tree
    return tree


def seed_of(generator: Any) -> int | tuple[int, ...]:
    """The seed that a generator began with, or those of a list, however far they have gone."""
    if isinstance(generator, (list, tuple)):
        return tuple(one.initial_seed() for one in generator)
    return generator.initial_seed()


def check_noise_seed(name: str, seed: object) -> None:
    """Raise `InputError` unless `seed` is a whole number ≥ 0, or a list of such."""
    several = isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed) > 0
    for one in seed if several else [seed]:  # type: ignore[attr-defined]
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise InputError(f"{name} is {seed!r}; a whole number ≥ 0, or a list with one for each row, is needed")
