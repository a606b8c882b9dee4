"""Solvers against analysis: on Gaussian data the perfect network and the exact path are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safelight import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from safelight.errors import InputError
from safelight.schedulers.prediction import training_target

from ..helpers.sampling import SHAPE, network, pure_run, start

SPREAD = 0.5  # of the data, which is N(0, SPREAD²)
VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KINDS = ["epsilon", "sample", "v_prediction", "flow_prediction"]


def _perfect(kind: str, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """What a perfect network of this kind says of x = α·x₀ + σ·ε."""
    x0 = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * x
    eps = (x - alpha * x0) / sigma
    scale = (alpha**2 + sigma**2) ** 0.5  # the network's own space, where α² + σ² = 1
    return training_target(kind, x0, eps, alpha / scale, sigma / scale)


def gaussian_sample(
    scheduler: Any, plan: Any, x: torch.Tensor, noisy: bool = False, network: Callable[..., torch.Tensor] | None = None
) -> torch.Tensor:
    """Run `plan` from `x` with a perfect network, or the given one."""
    state, generator = scheduler.initial_state(plan), torch.Generator().manual_seed(0)
    for i, (alpha, sigma) in enumerate(plan.levels):
        y = network(x, alpha, sigma) if network else _perfect(scheduler.config.prediction_type, x, alpha, sigma)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) if noisy and plan.needs_noise[i] else None
        x, state, _ = scheduler.advance(plan, i, y, x, state, z)
    return x


def gaussian_error(scheduler: Any, plan: Any) -> float:
    """Relative error of the path that starts at 1: the probability flow keeps x proportional to its spread."""
    alpha, sigma = plan.levels[0]
    exact = SPREAD / (alpha**2 * SPREAD**2 + sigma**2) ** 0.5
    return abs(gaussian_sample(scheduler, plan, torch.ones(1, 1)).item() / exact - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", [DDIMScheduler, EulerDiscreteScheduler])
def test_first_order_solvers_converge(solver: Any, kind: str) -> None:
    config = {"clip_sample": False} if solver is DDIMScheduler else {"timestep_spacing": "leading"}
    scheduler = solver(prediction_type=kind, **VP, **config)
    errors = [gaussian_error(scheduler, scheduler.plan(steps)) for steps in (25, 50, 100, 500)]
    assert errors[-1] < 0.01
    assert 1.6 < errors[0] / errors[1] < 2.6
    assert 1.6 < errors[1] / errors[2] < 2.6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [False, True])
def test_multistep_converges_faster(skip: bool, kind: str) -> None:
    scheduler = PNDMScheduler(prediction_type=kind, skip_prk_steps=skip, set_alpha_to_one=True, **VP)
    euler = DDIMScheduler(prediction_type=kind, clip_sample=False, **VP)
    errors = [gaussian_error(scheduler, scheduler.plan(steps, corrected=True)) for steps in (25, 100)]
    assert errors[1] < errors[0] / 3
    assert errors[1] < gaussian_error(euler, euler.plan(100)) / 4


@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_euler_converges_on_other_grids(flag: str) -> None:
    scheduler = EulerDiscreteScheduler(**{flag: True}, **VP)
    errors = [gaussian_error(scheduler, scheduler.plan(steps)) for steps in (20, 40, 300)]
    assert errors[0] > errors[1] > 5 * errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "fixed_small_log", "fixed_large_log"])
@pytest.mark.parametrize("kind", KINDS)
def test_ancestral_sampling_has_the_spread_of_the_data(kind: str, variance_type: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind, variance_type=variance_type, clip_sample=False)
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(7))
    samples = gaussian_sample(scheduler, scheduler.plan(), x, noisy=True)
    assert samples.std().item() == pytest.approx(SPREAD, rel=0.03)
    assert abs(samples.mean().item()) < 0.02


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_stochastic_ddim_has_the_spread_of_the_data(eta: float) -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(7))
    assert gaussian_sample(scheduler, scheduler.plan(250, eta=eta), x, noisy=True).std().item() == pytest.approx(
        SPREAD, rel=0.03
    )


@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddim_with_eta_one_is_ddpm(zero_snr: bool) -> None:
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr, "timestep_spacing": "trailing"}
    config = config if zero_snr else {}
    ddim, ddpm = DDIMScheduler(clip_sample=False, **config), DDPMScheduler(clip_sample=False, **config)
    runs = [
        pure_run(scheduler, plan, torch.Generator().manual_seed(3)).samples[:-1]  # DDPM adds no noise at t = 0
        for scheduler, plan in ((ddim, ddim.plan(20, eta=1.0)), (ddpm, ddpm.plan(20)))
    ]
    assert torch.allclose(*runs, atol=1e-4)


def test_euler_is_ddim_in_another_space() -> None:
    times = [950, 700, 420, 100, 0]
    ddim, euler = DDIMScheduler(clip_sample=False, **VP), EulerDiscreteScheduler(**VP)
    vp, ve = ddim.plan(timesteps=times), euler.plan(timesteps=times)
    x = start(1.0)
    z, state = x / vp.levels[0][0], None
    for i in range(len(times)):
        assert torch.allclose(euler.scale_input(ve, i, z), x, atol=1e-4)
        y = network(x, times[i])
        x, state, _ = ddim.advance(vp, i, y, x, state)
        z, _, _ = euler.advance(ve, i, y, z)
    assert torch.allclose(x, z, atol=1e-4)


@pytest.mark.parametrize(("share", "like"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_range_lies_between_the_fixed_variances(share: float, like: str) -> None:
    learned, fixed = DDPMScheduler(variance_type="learned_range"), DDPMScheduler(variance_type=like)
    x, y, z = start(1.0), network(start(1.0), 3), start(1.0, 4)
    plan, other = learned.plan(9), fixed.plan(9)
    for i in range(len(plan)):
        output = torch.cat([y, torch.full_like(y, share)], dim=1)
        wanted = fixed.advance(other, i, y, x, None, z).sample
        assert torch.allclose(learned.advance(plan, i, output, x, None, z).sample, wanted, atol=1e-5)


def test_learned_variances_below_zero_count_as_zero() -> None:
    scheduler = DDPMScheduler(variance_type="learned")
    plan, x, y = scheduler.plan(9), start(1.0), network(start(1.0), 3)
    negative, zero = (torch.cat([y, torch.full_like(y, v)], dim=1) for v in (-0.2, 0.0))
    results = [scheduler.advance(plan, 0, output, x, None, start(1.0, 4)).sample for output in (negative, zero)]
    assert torch.isfinite(results[0]).all()
    assert torch.equal(*results)


def test_no_noise_at_all_is_not_a_division_by_zero() -> None:
    for scheduler in (DDPMScheduler(beta_start=0.0), DDIMScheduler(beta_start=0.0, prediction_type="sample")):
        plan = scheduler.plan(1000).start_at(999)
        x0 = network(start(1.0), 0).clamp(-1, 1)
        assert torch.allclose(scheduler.advance(plan, 0, x0, x0).sample, x0)


# What `corrected` repairs, and what the reference does instead.


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_corrected_ddim_and_pndm_follow_the_timetable(spacing: str) -> None:
    config = {"timestep_spacing": spacing, **VP}
    for scheduler in (DDIMScheduler(clip_sample=False, **config), PNDMScheduler(set_alpha_to_one=True, **config)):
        errors = [gaussian_error(scheduler, scheduler.plan(150, corrected=corrected)) for corrected in (False, True)]
        assert errors[1] < 0.03
        assert errors[0] > 2 * errors[1]


def test_corrected_pndm_combines_noise_rather_than_velocities() -> None:
    scheduler = PNDMScheduler(prediction_type="v_prediction", set_alpha_to_one=True, **VP)
    epsilon = PNDMScheduler(set_alpha_to_one=True, **VP)
    errors = [gaussian_error(scheduler, scheduler.plan(50, corrected=corrected)) for corrected in (False, True)]
    assert errors[0] > 2 * errors[1]
    assert errors[1] == pytest.approx(gaussian_error(epsilon, epsilon.plan(50)), rel=0.05)


def test_corrected_pndm_does_not_lag_after_a_start_inside_the_timetable() -> None:
    scheduler = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, **VP)
    errors = [
        gaussian_error(scheduler, scheduler.plan(50, corrected=corrected).start_at(21)) for corrected in (False, True)
    ]
    assert errors[1] < 0.01
    assert errors[0] > 2 * errors[1]


def test_runge_kutta_can_start_at_its_steps_only() -> None:
    scheduler = PNDMScheduler(set_alpha_to_one=True, **VP)
    plan = scheduler.plan(50)
    for begin in (4, 8, 12, 20):
        assert gaussian_error(scheduler, plan.start_at(begin)) < 0.02
    with pytest.raises(InputError, match="start at step 0, 4, 8, 12"):
        scheduler.advance(plan.start_at(5), 0, start(1.0), start(1.0), scheduler.initial_state(plan))


def test_corrected_ddpm_ends_without_noise() -> None:
    scheduler = DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing")
    x, y, z = start(1.0), network(start(1.0), 3), start(1.0, 4)
    quirk, right = (scheduler.plan(10, corrected=corrected) for corrected in (False, True))
    assert quirk.needs_noise[-1] and not right.needs_noise[-1]
    noisy, clean = scheduler.advance(quirk, 9, y, x, None, z), scheduler.advance(right, 9, y, x)
    assert torch.allclose(clean.sample, clean.pred_original_sample)
    assert (noisy.sample - noisy.pred_original_sample).std() > 0.1


def test_corrected_euler_reads_velocities_where_the_churned_sample_is() -> None:
    scheduler = EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True)
    x0, eps, z = start(1.0), start(1.0, 2), torch.randn(SHAPE)
    read = []
    for corrected in (False, True):
        plan = scheduler.plan(10, corrected=corrected, s_churn=4.0)
        row = plan.rows[3]
        alpha = (row.sigma**2 + 1) ** -0.5
        y = training_target("v_prediction", x0, eps, alpha, row.sigma * alpha)
        x = x0 + row.sigma * eps - row.up * z
        read.append(scheduler.advance(plan, 3, y, x, None, z).pred_original_sample)
    assert torch.allclose(read[1], x0, atol=1e-4)
    assert (read[0] - x0).abs().max() > 0.02


@pytest.mark.parametrize("solver", [DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_gradients_flow_through_a_run(solver: Any) -> None:
    scheduler = solver(prediction_type="v_prediction")
    plan, (x, scale) = scheduler.plan(5), (start(1.0), torch.tensor(1.0, requires_grad=True))

    def run(scale: torch.Tensor) -> torch.Tensor:
        z, state = x, None
        for i in range(len(plan)):
            y = network(scheduler.scale_input(plan, i, z), plan.times[i]) * scale
            z, state, _ = scheduler.advance(plan, i, y, z, state, x)
        return z.double().sum()

    (gradient,) = torch.autograd.grad(run(scale), scale)
    with torch.no_grad():
        numeric = (run(scale + 1e-3) - run(scale - 1e-3)) / 2e-3
    assert gradient.item() == pytest.approx(numeric.item(), rel=0.02, abs=0.05)
