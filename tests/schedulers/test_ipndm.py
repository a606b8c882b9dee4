"""What is IPNDM's own: its first step from pure noise, its schedule, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from safelight import IPNDMScheduler
from safelight.errors import ConfigError, InputError

X, Y = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def test_the_first_step_reads_the_model_only_when_corrected() -> None:
    scheduler = IPNDMScheduler()
    for corrected in (False, True):
        plan = scheduler.plan(5, corrected=corrected)
        assert plan.levels[0] == (0.0, 1.0)
        alpha, sigma = plan.levels[1]
        one, other = (scheduler.advance(plan, 0, y, X) for y in (Y, -Y))
        # At pure noise the network's v is −x₀.
        assert torch.equal(one.pred_original_sample, -Y)
        torch.testing.assert_close(one.sample, sigma * X - (alpha * Y if corrected else 0))
        assert torch.equal(one.sample, other.sample) is not corrected


def test_what_the_network_is_told_is_the_angle() -> None:
    scheduler = IPNDMScheduler()
    plan = scheduler.plan(9)
    for time, (alpha, sigma) in zip(plan.times, plan.levels, strict=True):
        assert alpha == pytest.approx(math.cos(time * math.pi / 2), abs=1e-6)
        assert sigma == pytest.approx(math.sin(time * math.pi / 2), abs=1e-6)


def test_noise_and_velocity_at_the_levels_of_the_run() -> None:
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(6)
    plan, times = scheduler.plan(6), scheduler.timesteps[[2, 4]]
    noisy, velocity = scheduler.add_noise(X, Y, times), scheduler.get_velocity(X, Y, times)
    for row, i in enumerate((2, 4)):
        alpha, sigma = plan.levels[i]
        torch.testing.assert_close(noisy[row], plan_noised(scheduler, plan, i)[row])
        torch.testing.assert_close(velocity[row], alpha * Y[row] - sigma * X[row])
        original = scheduler.advance(plan, i, velocity, noisy).pred_original_sample
        torch.testing.assert_close(original[row], X[row])


def plan_noised(scheduler: IPNDMScheduler, plan: object, i: int) -> torch.Tensor:
    return scheduler.noised(plan, i, X, Y)  # type: ignore[arg-type]


def test_refusals() -> None:
    for betas in ([0.5], [0.9, 1.2], [0.3, float("nan")], [[0.9, 0.1]], []):
        with pytest.raises(ConfigError, match="trained_betas"):
            IPNDMScheduler(trained_betas=betas)
    for steps in (0, True, 3.0):
        with pytest.raises(ConfigError, match="num_train_timesteps"):
            IPNDMScheduler(num_train_timesteps=steps)  # type: ignore[arg-type]
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="timetable"):
        scheduler.step(Y, 0.123, X)
