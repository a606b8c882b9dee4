"""Brownian motion from a seed: the values of torchsde's tree, and the properties of Brownian motion."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from safelight.brownian import BrownianTree
from safelight.errors import InputError

SHAPE = (2, 3, 6, 5)
RANGES = [(0.0291675, 14.6146), (0.002, 80.0), (0.3, 500.0), (-1.0, 1.0)]


def _single(value: float) -> float:
    return float(np.float32(value))


def _tree(
    seed: int | Sequence[int] = 3, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = SHAPE
) -> BrownianTree:
    return BrownianTree(low, high, shape, seed, torch.float32, "cpu")


def _torchsde(low: float, high: float, seed: int, dtype: torch.dtype, shape: Any = SHAPE) -> Any:
    torchsde = pytest.importorskip("torchsde")
    return torchsde.BrownianInterval(
        t0=low, t1=high, size=shape, dtype=dtype, device="cpu", entropy=seed, tol=1e-6, pool_size=24, halfway_tree=True
    )


def _intervals(low: float, high: float, count: int) -> list[tuple[float, float]]:
    """Random intervals, of which some stick out of the range, and some that belong together, as a sampler's do."""
    draw = random.Random(5)
    margin = 0.02 * (high - low)
    free = [sorted(draw.uniform(low - margin, high + margin) for _ in "ab") for _ in range(count)]
    falling = np.linspace(high, low, count).astype(np.float32).tolist()
    steps = [(falling[i + 1 + (i + 1) % 2], falling[i - i % 2]) for i in range(count - 2)]
    return [(a, b) for a, b in (*free, *steps) if a < b]


# torchsde's values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("range_", RANGES)
def test_increments_equal_those_of_torchsde(range_: tuple[float, float], dtype: torch.dtype) -> None:
    low, high = map(_single, range_)
    theirs, ours = _torchsde(low, high, 2**62 + 1, dtype), BrownianTree(low, high, SHAPE, 2**62 + 1, dtype, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs warns of intervals that stick out
        for a, b in _intervals(low, high, 12):
            expected = theirs(a, b)
            assert ours.increment(a, b).dtype == dtype
            assert torch.equal(ours.increment(a, b), expected)
            assert torch.equal(ours.increment(b, a), -expected)


@pytest.mark.parametrize("seed", [0, 12, [4, 2**63 + 5], (0, 0)])
def test_noise_equals_that_of_the_sampler_of_diffusers(seed: Any) -> None:
    pytest.importorskip("torchsde")
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    low, high = map(_single, RANGES[0])
    theirs, ours = BrownianTreeNoiseSampler(torch.zeros(SHAPE), low, high, seed), _tree(seed, low, high)
    for a, b in [(9.5, 3.25), (9.5, 1.7), (1.7, 0.2), (0.2, 0.1), (0.1, 9.0), (high, low)]:
        expected = theirs(torch.tensor(a), torch.tensor(b))
        assert torch.equal(ours.normalised(_single(a), _single(b)), expected)


def test_small_and_empty_shapes_equal_torchsde() -> None:
    for shape in ((1,), (7,), (2, 0, 3), (1, 16)):
        theirs, ours = _torchsde(0.0, 1.0, 9, torch.float32, shape), _tree(9, shape=shape)
        assert torch.equal(ours.increment(0.2, 0.7), theirs(0.2, 0.7))


# a function of its arguments


def test_neither_the_order_of_queries_nor_what_is_remembered_matters() -> None:
    intervals = _intervals(0.0, 1.0, 60)
    fresh = [_tree().increment(a, b) for a, b in intervals]
    used = _tree()
    for order in (range(len(intervals)), reversed(range(len(intervals)))):
        for i in order:
            assert torch.equal(used.increment(*intervals[i]), fresh[i])
    assert len(used._known) <= 96


def test_what_it_gives_back_can_be_changed() -> None:
    tree = _tree()
    for a, b in ((0.0, 1.0), (0.5, 1.0), (0.25, 0.8)):
        first = tree.increment(a, b)
        kept = first.clone()
        first.zero_()
        assert torch.equal(tree.increment(a, b), kept)


def test_threads_share_a_tree() -> None:
    intervals = _intervals(0.0, 1.0, 60)
    alone, shared = _tree(), _tree()
    expected = [alone.increment(a, b) for a, b in intervals]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            found = list(pool.map(lambda interval: shared.increment(*interval), intervals))
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_row_with_its_own_seed_is_the_same_in_every_batch() -> None:
    whole, part = _tree([8, 9, 10], shape=(3, 4, 5)), _tree([9], shape=(1, 4, 5))
    assert torch.equal(whole.increment(0.1, 0.6)[1:2], part.increment(0.1, 0.6))
    assert torch.equal(part.increment(0.1, 0.6)[0], _tree(9, shape=(4, 5)).increment(0.1, 0.6))


def test_other_arguments_give_other_numbers() -> None:
    base = _tree().increment(0.1, 0.6)
    for other in (_tree(4), _tree(low=-0.5), _tree(high=2.0)):
        assert not torch.allclose(base, other.increment(0.1, 0.6), atol=0.1)


# Brownian motion


def test_increments_add_up() -> None:
    tree = BrownianTree(0.0, 10.0, SHAPE, 1, torch.float64, "cpu")
    cuts = [0.0, 0.3, 1.234567, 5.0, 5.000001, 8.9, 10.0]
    parts = sum(tree.increment(a, b) for a, b in pairwise(cuts))
    torch.testing.assert_close(parts, tree.increment(0.0, 10.0))
    torch.testing.assert_close(tree.increment(8.9, 0.3), -tree.increment(0.3, 5.0) - tree.increment(5.0, 8.9))
    assert not tree.increment(0.3, 0.3).any()


@pytest.mark.parametrize("cuts", [(0.0, 0.1, 0.5, 0.5625, 1.0), (0.2, 0.3, 0.6, 0.9)])
def test_disjoint_increments_are_independent_with_the_variance_of_their_length(cuts: tuple[float, ...]) -> None:
    count = 40_000
    tree = _tree(17, shape=(count,))
    parts = torch.stack([tree.increment(a, b) for a, b in pairwise(cuts)])
    lengths = torch.tensor(cuts).diff()
    covariance = torch.cov(parts / lengths.sqrt()[:, None])
    assert (covariance - torch.eye(len(lengths))).abs().max() < 5 * (2 / count) ** 0.5
    assert (parts.mean(1) / lengths.sqrt()).abs().max() < 5 / count**0.5
    assert ((parts / lengths.sqrt()[:, None]) ** 4).mean() == pytest.approx(3, rel=0.1)


def test_normalised_noise_has_variance_one() -> None:
    tree = _tree(2, 0.1, 20.0, shape=(40_000,))
    for a, b in ((15.0, 11.0), (0.2, 0.1)):
        assert tree.normalised(a, b).std() == pytest.approx(1.0, rel=0.02)
        assert torch.equal(tree.normalised(a, b), -tree.normalised(b, a))


# errors


def test_errors_name_what_is_wrong() -> None:
    for seed in (-1, 1.5, True, "3", None, [3, -2], [], [1, 2.0]):
        with pytest.raises(InputError, match="seed"):
            _tree(seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"3 noise seeds.*2 rows"):
        _tree([1, 2, 3])
    for low, high in ((1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(InputError, match="range"):
            _tree(low=low, high=high)
    with pytest.raises(InputError, match="empty"):
        _tree().normalised(0.5, 0.5)
    assert not _tree(low=0.5, high=0.5).increment(0.5, 0.5).any()
