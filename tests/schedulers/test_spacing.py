"""Grids of timesteps and sigmas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from safelight import EulerDiscreteScheduler
from safelight.errors import ConfigError, InputError
from safelight.schedulers.spacing import beta, descending, exponential, karras, sigma_to_t, spaced


def test_the_three_spacings() -> None:
    # Lin et al. 2023, table 2
    assert spaced("leading", 1000, 10, 1).tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert spaced("linspace", 1000, 10).round().tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert spaced("trailing", 1000, 10).tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]


@pytest.mark.parametrize("grid", [karras, exponential, beta])
def test_sigma_grids_fall_from_high_to_low(grid: Any) -> None:
    sigmas = grid(0.03, 14.6, 20)
    assert sigmas[[0, -1]] == pytest.approx([14.6, 0.03])
    assert (np.diff(sigmas) < 0).all()
    assert grid(0.03, 14.6, 1) == pytest.approx([14.6])


def test_karras_grid_is_even_in_the_seventh_root() -> None:
    assert np.diff(karras(0.03, 14.6, 9) ** (1 / 7), 2) == pytest.approx(np.zeros(7), abs=1e-12)


def test_beta_grid_has_the_quantiles_of_its_distribution() -> None:
    places = (beta(0.0, 1.0, 11, 0.6, 0.6)[1:-1], np.linspace(0.9, 0.1, 9))
    grid = (np.arange(1_000_000) + 0.5) / 1_000_000  # ∫ u^−0.4 (1 − u)^−0.4 du by the midpoint rule
    density = grid**-0.4 * (1 - grid) ** -0.4
    cumulative = np.cumsum(density) / density.sum()
    assert np.interp(places[0], grid, cumulative) == pytest.approx(places[1], abs=1e-3)


def test_sigma_to_t_inverts_the_training_sigmas() -> None:
    scheduler = EulerDiscreteScheduler()
    training = scheduler.sigmas[:-1].flip(0).numpy()
    assert sigma_to_t(training, training) == pytest.approx(np.arange(1000))
    between = math.sqrt(training[40] * training[41])
    assert sigma_to_t(np.array([between, 1e-9, 1e9]), training) == pytest.approx([40.5, 0, 999])


def test_a_wide_karras_range_keeps_timesteps_within_training() -> None:
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.002, sigma_max=500.0)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999
    assert scheduler.timesteps[-1] == 0
    assert scheduler.sigmas[[0, -2, -1]].tolist() == pytest.approx([500.0, 0.002, 0.0])


def test_continuous_timesteps_are_quarter_log_sigmas() -> None:
    scheduler = EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    plan = scheduler.plan(9)
    assert torch.allclose(plan.timesteps, torch.tensor(plan.sigmas[:-1]).log() / 4)


def test_log_linear_grid_reaches_the_final_sigma_when_corrected() -> None:
    scheduler = EulerDiscreteScheduler(interpolation_type="log_linear")
    quirk, right = scheduler.plan(10), scheduler.plan(10, corrected=True)
    assert len(quirk) == len(right) == 10
    assert quirk.sigmas[10] == pytest.approx(scheduler.sigmas[-2].item(), rel=1e-5)  # the smallest, not zero
    assert right.sigmas[10] == 0
    assert sigma_to_t(np.array(right.sigmas[:-1]), scheduler._training_sigmas()) == pytest.approx(right.times, abs=1e-3)
    assert sigma_to_t(np.array(quirk.sigmas[:10]), scheduler._training_sigmas()) != pytest.approx(quirk.times, abs=50)


@pytest.mark.parametrize(
    ("config", "error", "named"),
    [
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, ConfigError, "use_karras_sigmas and use_beta_sigmas"),
        ({"use_exponential_sigmas": True, "use_beta_sigmas": True}, ConfigError, "use_exponential_sigmas"),
        ({"timestep_spacing": "trailin"}, ConfigError, "did you mean 'trailing'"),
        ({"interpolation_type": "log"}, ConfigError, "interpolation_type is 'log'"),
        ({"timestep_type": "continous"}, ConfigError, "did you mean 'continuous'"),
        ({"final_sigmas_type": "sigma_mn"}, ConfigError, "did you mean 'sigma_min'"),
        ({"use_karras_sigmas": True, "sigma_min": 200.0}, InputError, "sigma_min"),
        ({"use_exponential_sigmas": True, "sigma_min": 0.0}, InputError, "sigma_min"),
        ({"beta_start": 0.0}, InputError, "positive"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        EulerDiscreteScheduler(**config).plan(10)


@pytest.mark.parametrize("values", [[], [3, 3], [1, 2], [2, float("nan")], [float("inf"), 1], "ab", [None], 7])
def test_custom_grids_fall_and_are_finite(values: Any) -> None:
    with pytest.raises(InputError, match="timesteps"):
        descending("timesteps", values)
