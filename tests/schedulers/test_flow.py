"""What flow solvers do by themselves: exact paths, repaired defects, sizes that grow, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safelight import FlowMatchEulerDiscreteScheduler as Euler
from safelight import FlowMatchHeunDiscreteScheduler as Heun
from safelight import FlowMatchLCMScheduler as LCM
from safelight.errors import ConfigError, InputError, UnknownArgumentError

SHAPE = (2, 3, 6, 5)


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed))


def _sampled(scheduler: Any, plan: Any, x: torch.Tensor, network: Any, upto: int | None = None) -> torch.Tensor:
    """x after `upto` evaluations of `network(x, α, σ)`."""
    generator, state = torch.Generator().manual_seed(1), None
    for i in range(len(plan) if upto is None else upto):
        noise = scheduler.draw_noise(plan, i, x, generator)
        x, state, _ = scheduler.advance(plan, i, network(x, *plan.levels[i]), x, state, noise)
    return x


@pytest.mark.parametrize("solver", [Euler, Heun, LCM])
def test_data_of_one_image_is_reached_exactly(solver: Any) -> None:
    image = _noise(2)
    scheduler = solver(shift=3.0)
    plan = scheduler.plan(6)
    assert torch.equal(scheduler.noised(plan, 0, image, _noise(1)), _noise(1))
    reached = _sampled(scheduler, plan, _noise(1), lambda x, alpha, sigma: (x - image) / sigma)
    assert torch.allclose(reached, image, atol=1e-5)


@pytest.mark.parametrize("solver", [Euler, LCM])
def test_inverted_sigmas_are_the_share_of_the_image_when_corrected(solver: Any) -> None:
    image, config = _noise(2), {"stochastic_sampling": True} if solver is Euler else {}
    scheduler = solver(invert_sigmas=True, **config)

    def network(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        return (image - x) / sigma  # towards the image

    plan = scheduler.plan(5, corrected=True)
    assert plan.levels[0] == (0.0, 1.0)
    assert plan.sigmas[-1] == 1.0
    assert torch.allclose(_sampled(scheduler, plan, _noise(1), network), image, atol=1e-5)
    assert scheduler.plan(5).levels[0] == (1.0, 0.0)


def test_the_smallest_sigma_is_shifted_once_when_corrected() -> None:
    scheduler = Euler(shift=3.0)
    once = 3 * 0.001 / (1 + 2 * 0.001)
    assert scheduler.plan(9, corrected=True).sigmas[-2] == pytest.approx(once)
    assert scheduler.plan(9).sigmas[-2] == pytest.approx(3 * once / (1 + 2 * once))


def test_custom_timesteps_are_those_of_the_sigmas_when_corrected() -> None:
    scheduler, times = Euler(shift=3.0), [900.0, 600.0, 100.0]
    assert scheduler.plan(timesteps=times, corrected=True).sigmas == pytest.approx([0.9, 0.6, 0.1, 0.0])
    assert scheduler.plan(timesteps=times).sigmas[0] == pytest.approx(2.7 / 2.8)
    assert scheduler.plan(timesteps=times).times == (900.0, 600.0, 100.0)


def test_churn_stays_on_the_path_when_corrected() -> None:
    """With y = 0 a step only adds noise, which must take (1 − σ)·x₀ + σ·ε to (1 − σ̂)·x₀ + σ̂·ε."""
    scheduler, shape = Heun(), (4, 3, 64, 64)
    image, plans = torch.full(shape, 2.0), [scheduler.plan(6, corrected=yes, s_churn=2.0) for yes in (False, True)]
    sigma = plans[0].levels[6][1]
    raised = sigma * (1 + 2.0 / 11)
    churned = []
    for plan in plans:
        x = scheduler.noised(plan, 6, image, _noise(1, *shape))
        churned.append(scheduler.advance(plan, 6, torch.zeros(shape), x, None, _noise(2, *shape)).sample)
    assert float(churned[0].mean()) == pytest.approx(2 * (1 - sigma), abs=0.01)
    assert float(churned[1].mean()) == pytest.approx(2 * (1 - raised), abs=0.01)
    assert [float(x.std()) for x in churned] == pytest.approx([raised, raised], rel=0.01)
    assert plans[0].rows[0].churn
    assert not plans[1].rows[0].churn  # there is nothing above σ = 1


def test_heun_started_within_a_step_goes_on_with_the_next() -> None:
    scheduler, image = Heun(), _noise(2)
    plan = scheduler.plan(6).start_at(3)
    x = scheduler.noised(plan, 0, image, _noise(1))
    assert torch.equal(scheduler.advance(plan, 0, _noise(3), x).sample, x)
    reached = _sampled(scheduler, plan, x, lambda x, alpha, sigma: (x - image) / sigma)
    assert torch.allclose(reached, image, atol=1e-5)
    scheduler.set_timesteps(6)
    assert scheduler.state_in_first_order
    scheduler.step(_noise(3), scheduler.timesteps[0], x)
    assert not scheduler.state_in_first_order


def test_sizes_that_grow() -> None:
    scheduler = LCM(scale_factors=[1.5, 1.5, 2.25], upscale_mode="nearest")
    scheduler.set_timesteps(4)
    x, sizes = _noise(1, 1, 2, 5, 7), []
    for t in scheduler.timesteps:
        out = scheduler.step(x, t, x)
        x = out.prev_sample
        sizes.append(tuple(x.shape[2:]))
        assert out.pred_original_sample.shape == x.shape
    assert sizes == [(8, 10), (8, 10), (11, 16), (11, 16)]
    half = scheduler.plan(4).start_at(2)
    noise = scheduler.draw_noise(half, 0, _noise(1, 1, 2, 8, 10))
    assert noise.shape == (1, 2, 11, 16)
    assert noise.dtype == torch.float32
    with pytest.raises(InputError, match="3 scale_factors need a run of 4 evaluations"):
        scheduler.draw_noise(scheduler.plan(5), 0, x)
    scheduler.set_scale_factors(None, None)
    assert scheduler.step(x, scheduler.timesteps[0], x).prev_sample.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_velocity_is_noise_less_image(dtype: torch.dtype) -> None:
    clean, noise = _noise(1).to(dtype), _noise(2).to(dtype)
    assert torch.equal(Euler().get_velocity(clean, noise, torch.tensor([3.0, 5.0])), noise - clean)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"shift": 0.0}, "shift is 0.0"),
        ({"shift": "3"}, "shift is '3'"),
        ({"shift_terminal": 1.0}, "shift_terminal is 1.0"),
        ({"time_shift_type": "cubic"}, "exponential, linear"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one"),
        ({"scale_factors": [0.5]}, "at least 1"),
        ({"upscale_mode": "cubic"}, "bicubic"),
    ],
)
def test_configs_that_cannot_be(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LCM(**config)


@pytest.mark.parametrize(
    ("config", "arguments", "named"),
    [
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 4}, "pass mu"),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"num_inference_steps": 4, "mu": -1.0}, "mu is"),
        ({}, {"sigmas": [1.2, 0.5]}, r"sigmas in \[0, 1\]"),
        ({}, {"timesteps": [1200.0, 0.5]}, r"timesteps in \[0, 1000\]"),
        ({}, {"sigmas": [1.0, 0.5], "num_inference_steps": 3}, "must be equal"),
        ({}, {"sigmas": [1.0, 0.5], "timesteps": [900.0]}, "must be equal"),
        ({}, {"sigmas": [0.5, 1.0]}, "smaller than the one before"),
        ({}, {"num_inference_steps": 4, "s_churn": 1.0, "corrected": True}, "no churn"),
        ({}, {}, "needs num_inference_steps"),
    ],
)
def test_timetables_that_cannot_be(config: dict[str, Any], arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Euler(**config).set_timesteps(**arguments)


def test_steps_that_cannot_be() -> None:
    scheduler, x = Euler(), _noise(1, 2, 3, 4)
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="integer 3"):
        scheduler.step(x, 3, x)
    with pytest.raises(InputError, match=r"per_token_timesteps has shape \(2, 4\)"):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=torch.ones(2, 4))
    with pytest.raises(UnknownArgumentError, match="eta"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=1.0)
    with pytest.raises(InputError, match="constructor"):
        Heun().set_shift(2.0)
    with pytest.raises(UnknownArgumentError, match="sigmas"):
        Heun().set_timesteps(sigmas=[1.0, 0.5])


def test_stochastic_tokens_are_read_as_the_others_when_corrected() -> None:
    """All tokens at one timestep, the step is that of the whole sample with the sign of y turned."""
    scheduler, x, y = Euler(stochastic_sampling=True), _noise(1, 2, 3, 4), _noise(2, 2, 3, 4)
    plan = scheduler.plan(5, corrected=True)
    tokens = plan.timesteps[2].expand(2, 3)
    apart = scheduler.advance_tokens(plan, 2, -y, x, tokens, _noise(3, 2, 3, 4))
    whole = scheduler.advance(plan, 2, y, x, None, _noise(3, 2, 3, 4))
    assert torch.allclose(apart.sample, whole.sample, atol=1e-6)
    assert torch.allclose(apart.pred_original_sample, whole.pred_original_sample, atol=1e-6)
    with pytest.raises(InputError, match="outside this plan"):
        scheduler.advance_tokens(plan, 5, y, x, tokens)
