"""The prediction table: what a network is trained to say is what a solver reads."""

from __future__ import annotations

import math

import pytest
import torch

from safelight import DDIMScheduler, DDPMScheduler
from safelight.errors import ConfigError, InputError
from safelight.schedulers.prediction import PREDICTION_TYPES, prediction_row, reading, threshold, training_target


@pytest.mark.parametrize("alpha", [0.999, 0.6, 0.01])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_reading_a_perfect_network_gives_back_image_and_noise(kind: str, flow: bool, alpha: float) -> None:
    sigma = 1 - alpha if flow else math.sqrt(1 - alpha**2)
    if flow and kind == "v_prediction" and alpha == 0.6:
        assert prediction_row(kind, alpha, sigma) == (-sigma, alpha)
    x0, eps = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    x, y = alpha * x0 + sigma * eps, training_target(kind, x0, eps, alpha, sigma)
    read = reading(kind, alpha, sigma)
    assert torch.allclose(read.x0(x, y), x0, atol=1e-9)
    assert torch.allclose(read.eps(x, y), eps, atol=1e-9)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_readings_of_scaled_samples(kind: str) -> None:
    sigma, x0, eps = 7.0, torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    alpha = (sigma**2 + 1) ** -0.5
    y = training_target(kind, x0, eps, alpha, sigma * alpha)
    assert torch.allclose(reading(kind, alpha, sigma * alpha).x0.of_scaled(alpha)(x0 + sigma * eps, y), x0, atol=1e-9)


def test_targets_broadcast_over_the_batch() -> None:
    x0, eps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    alpha = torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    v = training_target("v_prediction", x0, eps, alpha, sigma)
    assert torch.allclose(v[1], 0.5 * eps[1] - sigma[1] * x0[1])
    assert training_target("epsilon", x0, eps, alpha, sigma) is eps
    assert training_target("sample", x0, eps, alpha, sigma) is x0
    assert torch.equal(training_target("flow_prediction", x0, eps, alpha, sigma), eps - x0)


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "flow_prediction"])
def test_without_signal_all_but_epsilon_networks_know_the_image(kind: str) -> None:
    x0, eps = torch.randn(4), torch.randn(4)
    y = training_target(kind, x0, eps, 0.0, 1.0)
    read = reading(kind, 0.0, 1.0)
    assert torch.allclose(read.x0(eps, y), x0, atol=1e-6)
    assert torch.allclose(read.eps(eps, y), eps, atol=1e-6)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_without_noise_everything_stays_finite(kind: str) -> None:
    x0, eps = torch.randn(4), torch.randn(4)
    read = reading(kind, 1.0, 0.0)
    y = training_target(kind, x0, eps, 1.0, 0.0)
    assert torch.allclose(read.x0(x0, y), x0)
    assert torch.isfinite(read.eps(x0, y)).all()


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_epsilon_networks_without_signal_are_refused_unless_clipped(scheduler: type) -> None:
    made = scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    with pytest.raises(InputError, match=r"timestep 999 .*v_prediction"):
        made.plan(10)
    x, y = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    clipped = scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample_range=0.7)
    original = clipped.advance(clipped.plan(10), 0, y, x, noise=torch.zeros_like(x)).pred_original_sample
    assert torch.equal(original.abs(), torch.full_like(x, 0.7))  # the limit as the signal vanishes


def test_unknown_type_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'v_prediction'"):
        prediction_row("v_predicton", 1.0, 0.0)


def test_dynamic_thresholding() -> None:
    x = torch.randn(2, 3, 8, 8) * torch.tensor([0.1, 3.0]).view(2, 1, 1, 1)
    out = threshold(x, 0.9, 2.0)
    assert torch.equal(out[0], x[0])  # within [−1, 1] nothing changes
    assert out[1].abs().max() == 1
    limit = min(2.0, torch.quantile(x[1].abs().flatten(), 0.9).item())
    assert torch.allclose(out[1], x[1].clamp(-limit, limit) / limit)
    assert threshold(x.bfloat16(), 0.9, 2.0).dtype == torch.bfloat16
