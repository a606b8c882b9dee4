"""Beta schedules: their ends, their limits, zero terminal SNR."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from safelight import DDPMScheduler, EulerDiscreteScheduler
from safelight.errors import ConfigError
from safelight.schedulers.noise import BETA_SCHEDULES, betas_for_alpha_bar, rescale_zero_terminal_snr


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 100, 1000])
def test_every_schedule_adds_noise_from_none_to_much(name: str, steps: int) -> None:
    scheduler = DDPMScheduler(beta_schedule=name, num_train_timesteps=steps)
    assert scheduler.betas.shape == (steps,)
    assert (scheduler.alphas_cumprod.diff() < 0).all()
    assert steps < 1000 or scheduler.alphas_cumprod[-1] < 0.04


def test_cosine_schedule_follows_its_formula() -> None:
    cumulative = torch.cumprod(1 - betas_for_alpha_bar(50).double(), 0)
    wanted = [math.cos(((i + 1) / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(49)]
    assert torch.allclose(cumulative[:-1], torch.tensor(wanted, dtype=torch.float64) / 0.99984, rtol=1e-4)
    assert betas_for_alpha_bar(50).max() == pytest.approx(0.999)


def test_zero_terminal_snr_keeps_the_start_and_removes_the_end() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000)
    before, after = (torch.cumprod(1 - b, 0) for b in (betas, rescale_zero_terminal_snr(betas)))
    assert after[-1] == 0
    assert after[0] == pytest.approx(before[0].item(), rel=1e-6)
    # √ᾱ is moved by a straight line
    ratio = (after.sqrt() - after.sqrt()[-1]) / (before.sqrt() - before.sqrt()[-1])
    assert ratio[:-1].max() - ratio[:-1].min() < 1e-4


def test_sigma_solvers_keep_zero_terminal_snr_finite() -> None:
    scheduler = EulerDiscreteScheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 2**-24
    assert scheduler.sigmas[0] == pytest.approx(4096, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"beta_schedule": "scaled_linaer"}, "did you mean 'scaled_linear'"),
        ({"beta_schedule": "x"}, "valid names: exp, laplace"),
        ({"beta_start": -0.1}, "beta_start=-0.1"),
        ({"beta_end": 1.5}, "beta_end=1.5"),
        ({"trained_betas": [0.1, 0.2]}, "num_train_timesteps=1000"),
        ({"trained_betas": [0.1, 1.2], "num_train_timesteps": 2}, "outside"),
        ({"trained_betas": [0.1, float("nan")], "num_train_timesteps": 2}, "outside"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": 10.5}, "10.5"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "two steps"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DDPMScheduler(**config)
