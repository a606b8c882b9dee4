"""What consistency samplers do by themselves: exact networks, timetables, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from safelight import CMStochasticIterativeScheduler as CM
from safelight import SCMScheduler as SCM
from safelight.errors import ConfigError, InputError
from safelight.schedulers.base import Scheduler

SHAPE = (2, 3, 6, 5)


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_data_of_one_image_is_reached_on_the_circle() -> None:
    scheduler, image = SCM(), _noise(2)
    plan = scheduler.plan(4)
    x, generator = scheduler.noised(plan, 0, image, _noise(1)), torch.Generator().manual_seed(1)
    for i in range(len(plan)):
        t = plan.times[i]
        y = (math.cos(t) * x - image) / math.sin(t)
        x, _, original = scheduler.advance(plan, i, y, x, None, scheduler.draw_noise(plan, i, x, generator))
        assert torch.allclose(original, image, atol=1e-5)
    assert torch.allclose(x, image, atol=1e-5)


def test_the_spread_of_the_noise_is_that_of_the_data() -> None:
    scheduler = SCM(sigma_data=0.25)
    plan = scheduler.plan(2)
    assert plan.times == pytest.approx((1.5708, 1.3))
    assert plan.levels[1] == pytest.approx((math.cos(1.3), 0.25 * math.sin(1.3)))
    scheduler.set_timesteps(2)
    again = scheduler.add_noise(_noise(1), _noise(2), scheduler.timesteps[[1, 1]])
    assert torch.allclose(again, scheduler.noised(plan, 1, _noise(1), _noise(2)))


def test_angles_are_one_more_than_evaluations() -> None:
    scheduler = SCM()
    assert len(scheduler.timesteps) == 1001
    scheduler.set_timesteps(timesteps=[1.5, 0.7, 0.1])
    assert scheduler.timesteps.tolist() == pytest.approx([1.5, 0.7, 0.1])
    assert (len(scheduler._active), scheduler.num_inference_steps) == (2, 2)
    scheduler.timesteps = scheduler.timesteps.clone()
    with pytest.raises(InputError, match="outside this plan"):
        scheduler.step(_noise(1), scheduler.timesteps[2], _noise(2))
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == pytest.approx([1.5708, 1.0472, 0.5236, 0.0])
    scheduler.set_timesteps(2, intermediate_timesteps=None)
    assert scheduler.timesteps.tolist() == pytest.approx([1.5708, 0.7854, 0.0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_inference_steps": 1001}, "num_train_timesteps=1000"),
        ({"num_inference_steps": 3, "intermediate_timesteps": 1.0}, "two steps"),
        ({"num_inference_steps": 2, "intermediate_timesteps": 1.6}, "falling angles"),
        ({"num_inference_steps": 2, "max_timesteps": None}, "max_timesteps is None"),
        ({"num_inference_steps": 3, "max_timesteps": 2.0}, "falling angles"),
        ({"num_inference_steps": 3, "timesteps": [1.5, 1.0, 0.0]}, "4 for 3 steps"),
        ({"timesteps": [1.5]}, "at least 2"),
        ({"timesteps": [1.5, -0.1]}, "falling angles"),
        ({"timesteps": [1.5, 0.1], "max_timesteps": 1.4}, "contradict"),
    ],
)
def test_angles_that_cannot_be(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        SCM().set_timesteps(**arguments)


def test_a_consistent_network_is_reached_in_sigma() -> None:
    """y that makes x₀ the image gives x = image + √(σ² − σ_min²)·z, and the image at the end."""
    scheduler, image = CM(), _noise(2).clamp(-1, 1)
    plan = scheduler.plan(4)
    x, generator = scheduler.noised(plan, 0, image, _noise(1)), torch.Generator().manual_seed(1)
    for i in range(len(plan)):
        keep, scale = scheduler.get_scalings_for_boundary_condition(plan.levels[i][1])
        x, _, original = scheduler.advance(
            plan, i, (image - keep * x) / scale, x, None, scheduler.draw_noise(plan, i, x, generator)
        )
        assert torch.allclose(original, image, atol=1e-5)
    assert torch.allclose(x, image, atol=1e-5)


def test_places_in_the_grid_of_sigmas() -> None:
    scheduler = CM()
    every = scheduler.plan()
    assert every.sigmas[0] == pytest.approx(80.0)
    assert every.sigmas[-2:] == pytest.approx((0.002, 0.002))
    assert scheduler.plan(4).sigmas == pytest.approx([*every.sigmas[0:40:10], 0.002])
    assert scheduler.plan(timesteps=[22, 0]).sigmas == pytest.approx([80.0, every.sigmas[22], 0.002])
    assert scheduler.plan(1).needs_noise == (False,)
    assert CM(num_train_timesteps=1).plan(1).sigmas == pytest.approx([80.0, 0.002])


def test_timesteps_cast_to_float32_are_found() -> None:
    scheduler = CM()
    scheduler.set_timesteps(5)
    for i, t in enumerate(scheduler.timesteps.float()):
        assert scheduler.step_index == (i or None)
        scheduler.step(_noise(1), t, _noise(2))


def test_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Scheduler, "_assemble", lambda self, grid, options, device=None: seen.append(grid.times.dtype))
    CM().plan(4, device="mps")
    CM().plan(4, device="cpu")
    assert [str(one) for one in seen] == ["float32", "float64"]


@pytest.mark.parametrize(
    "config",
    [{"sigma_min": 0.0}, {"sigma_min": 90.0}, {"rho": 0.0}, {"sigma_data": -1.0}, {"num_train_timesteps": 0}],
)
def test_configs_that_cannot_be(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(config))):
        CM(**config)
    if "sigma_data" in config:
        with pytest.raises(ConfigError, match="sigma_data"):
            SCM(**config)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"num_inference_steps": 41}, "num_train_timesteps=40"), ({"timesteps": [40, 3]}, r"whole numbers in \[0, 40\)")],
)
def test_timetables_that_cannot_be(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        CM().set_timesteps(**arguments)
