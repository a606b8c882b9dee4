"""Noise that depends on its seed alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from safelight import InputError
from safelight.randomness import generators, randn_tensor, set_seed


def test_image_k_gets_its_noise_in_every_batch():
    batch = randn_tensor((4, 3, 5, 5), generators(10, 4))
    for k in range(4):
        assert torch.equal(batch[k : k + 1], randn_tensor((1, 3, 5, 5), generators(10 + k, 1)))
    assert torch.equal(randn_tensor((2, 3), generators([13, 10], 2)), randn_tensor((2, 3), generators([13, 10], 2)))
    assert torch.equal(randn_tensor((4, 3, 5, 5), generators([10, 11, 12, 13], 4)), batch)


def test_one_generator_draws_the_whole_batch():
    one, listed, plain = (torch.Generator().manual_seed(0) for _ in range(3))
    expected = torch.randn(2, 3, generator=plain, dtype=torch.float64)
    assert torch.equal(randn_tensor((2, 3), one, dtype=torch.float64), expected)
    assert torch.equal(randn_tensor((2, 3), [listed], dtype=torch.float64), expected)


def test_noise_without_a_generator_follows_the_global_seed():
    set_seed(7)
    first = randn_tensor((2, 2), dtype=torch.float16), random.random(), np.random.rand()
    set_seed(7)
    second = randn_tensor((2, 2), dtype=torch.float16), random.random(), np.random.rand()
    assert torch.equal(first[0], second[0])
    assert first[0].dtype == torch.float16
    assert first[1:] == second[1:]


def test_a_cpu_generator_serves_other_devices():
    assert randn_tensor((2, 2), generators(0, 2), device="meta").device.type == "meta"


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7"])
def test_seeds_that_are_none(seed):
    with pytest.raises(InputError, match="seed is"):
        generators(seed, 1)
    with pytest.raises(InputError, match="seed is"):
        set_seed(seed)


def test_lists_that_do_not_fit_the_batch():
    with pytest.raises(InputError, match="list of 2, but 3"):
        generators([1, 2], 3)
    with pytest.raises(InputError, match="list of 2, but the batch has 3"):
        randn_tensor((3, 2), generators(0, 2))
