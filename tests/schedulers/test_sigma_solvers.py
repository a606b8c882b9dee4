"""What the solvers in σ have of their own: prediction types, starts between evaluations, weights, refusals."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from safelight import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
)
from safelight.errors import ConfigError, InputError, UnknownArgumentError
from safelight.schedulers.euler import lagrange_integrals
from safelight.schedulers.prediction import training_target
from safelight.schedulers.sigma import ancestral

from ..helpers.compare import relative_difference
from ..helpers.sampling import SHAPE, familiar_run, pure_run

VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TWICE = [HeunDiscreteScheduler, KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler]
SOLVERS = [EulerAncestralDiscreteScheduler, LMSDiscreteScheduler, *TWICE]
KINDS = ["epsilon", "sample", "v_prediction", "flow_prediction"]
COSINE = {"beta_schedule": "squaredcos_cap_v2"}


def _guess(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """What a network takes for x₀."""
    return torch.tanh(x.roll(1, -1) / (1 + sigma**2) ** 0.5)


def _run(scheduler: Any, plan: Any, kind: str, begin: int = 0) -> torch.Tensor:
    """Every sample of a run with the network that makes `_guess` and says so as `kind`."""
    scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)
    plan, generator = scheduler.plan(plan.num_inference_steps).start_at(begin), torch.Generator().manual_seed(1)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * plan.levels[0][1]
    samples, state = [], scheduler.initial_state(plan)
    for i, (_, sigma) in enumerate(plan.levels):
        alpha = (sigma**2 + 1) ** -0.5
        x0 = _guess(x, sigma)
        y = training_target(kind, x0, (x - x0) / sigma, alpha, sigma * alpha)
        x, state, _ = scheduler.advance(plan, i, y, x, state, scheduler.draw_noise(plan, i, x, generator))
        samples.append(x)
    return torch.stack(samples)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("solver", SOLVERS)
def test_prediction_types_say_the_same(solver: Any, kind: str) -> None:
    scheduler = solver(**VP)
    plan = scheduler.plan(9)
    assert relative_difference(_run(scheduler, plan, kind), _run(scheduler, plan, "epsilon")) <= 1e-5


def test_second_evaluations_see_the_sigma_where_the_sample_is() -> None:
    sigmas = np.array(EulerDiscreteScheduler(**VP).plan(6).sigmas)
    for solver, middle in (
        (HeunDiscreteScheduler, sigmas[1:-1]),
        (KDPM2DiscreteScheduler, (sigmas[:-2] * sigmas[1:-1]) ** 0.5),
        (KDPM2AncestralDiscreteScheduler, sigmas[1:-1]),
    ):
        scheduler: Any = solver(**VP)
        plan = scheduler.plan(6)
        assert [sigma for _, sigma in plan.levels[::2]] == pytest.approx(sigmas[:-1].tolist(), rel=1e-6)
        assert [sigma for _, sigma in plan.levels[1::2]] == pytest.approx(middle.tolist(), rel=1e-4)
        clean, noise = torch.zeros(SHAPE), torch.ones(SHAPE)
        noisy = [scheduler.noised(plan, i, clean, noise).mean().item() for i in range(len(plan))]
        assert noisy == pytest.approx([sigma for _, sigma in plan.levels])


@pytest.mark.parametrize("begin", [1, 3, 5])
def test_heun_stands_still_where_it_begins_with_a_second_evaluation(begin: int) -> None:
    scheduler = HeunDiscreteScheduler(**VP)
    plan = scheduler.plan(6)
    late = _run(scheduler, plan, "epsilon", begin)
    assert torch.equal(late[1:], _run(scheduler, plan, "epsilon", begin + 1))


@pytest.mark.parametrize("begin", [1, 3, 5])
def test_the_midpoint_method_finishes_its_step_where_it_begins_with_a_second_evaluation(begin: int) -> None:
    scheduler = KDPM2DiscreteScheduler(**VP)
    plan = scheduler.plan(6)
    (_, here), (_, end) = plan.levels[begin : begin + 2]
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * here
    first = _run(scheduler, plan, "epsilon", begin)[0]
    assert relative_difference(first, x + (end - here) * (x - _guess(x, here)) / here) <= 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy")  # diffusers' use of it
def test_the_midpoint_of_an_ancestral_step_is_its_end() -> None:
    scheduler = KDPM2AncestralDiscreteScheduler(**COSINE)
    theirs = diffusers.KDPM2AncestralDiscreteScheduler(**COSINE)
    theirs.set_timesteps(5)
    plan = scheduler.plan(5)
    assert torch.isnan(theirs.sigmas_interpol[0])  # 20291² − 2.4² is 20291² in float32
    assert plan.levels[1][1] == plan.sigmas[1]
    assert torch.isfinite(pure_run(scheduler, plan, torch.Generator().manual_seed(1)).samples).all()

    theirs.set_timesteps(30)
    assert scheduler.plan(30).levels[1][1] == pytest.approx(theirs.sigmas_interpol[0].item())


@pytest.mark.parametrize("start", [20000.0, 14.6, 0.3])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.03, 0.0])
def test_ancestral_steps_end_with_the_right_noise(start: float, share: float) -> None:
    start, end = torch.tensor([start, start * share]).double()
    down, up = ancestral(start, end)
    assert (down**2 + up**2).item() == pytest.approx(end.item() ** 2)
    assert down.item() == pytest.approx((end**2 / start).item())


def test_the_ancestral_step_is_that_of_ddim() -> None:
    """q(x'|x, x₀) has the mean x₀ + (σ'²/σ²)·(x − x₀) and the variance σ'²·(1 − σ'²/σ²)."""
    scheduler = EulerAncestralDiscreteScheduler(**VP)
    plan = scheduler.plan(8)
    x, y, z = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    (_, sigma), (_, end) = plan.levels[2:4]
    result = scheduler.advance(plan, 2, y, x * sigma, None, z)
    x0 = x * sigma - sigma * y
    mean, variance = x0 + (end / sigma) ** 2 * (x * sigma - x0), end**2 * (1 - (end / sigma) ** 2)
    assert relative_difference(result.sample, mean + variance**0.5 * z) <= 1e-6
    assert relative_difference(result.pred_original_sample, x0) <= 1e-6


# linear multistep


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_lagrange_integrals_are_exact(count: int) -> None:
    nodes, start, end = np.array([5.0, 6.5, 7.1, 9.0, 9.4, 11.0, 12.5])[:count], 5.0, 3.7
    weights = lagrange_integrals(nodes, start, end)
    for power in range(count):  # the polynomial through values of s^power is s^power
        exact = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
        assert weights @ nodes**power == pytest.approx(exact, rel=1e-9)


def test_one_slope_is_eulers_method() -> None:
    lms, euler = LMSDiscreteScheduler(**VP), EulerDiscreteScheduler(**VP)
    runs = [pure_run(lms, lms.plan(9, order=1)), pure_run(euler, euler.plan(9))]
    assert relative_difference(runs[0].samples, runs[1].samples) <= 1e-6


def test_a_late_start_uses_weights_of_what_it_has_when_corrected() -> None:
    scheduler, euler = LMSDiscreteScheduler(**VP), EulerDiscreteScheduler(**VP)
    runs = {corrected: pure_run(scheduler, scheduler.plan(9, corrected=corrected)) for corrected in (False, True)}
    assert torch.equal(runs[False].samples, runs[True].samples)  # from the beginning there is no difference

    late = {corrected: scheduler.plan(9, corrected=corrected).start_at(4) for corrected in (False, True)}
    right = pure_run(euler, euler.plan(9).start_at(4)).samples
    first = {corrected: pure_run(scheduler, plan).samples for corrected, plan in late.items()}
    assert relative_difference(first[True][:2], right[:2]) <= 1e-6
    assert relative_difference(first[False][:2], right[:2]) > 0.05
    weights = [row.steps[min(i, 3)].weights for i, row in enumerate(late[True].rows)]
    assert [len(one) for one in weights] == [1, 2, 3, 4, 4]
    steps = np.diff(late[True].sigmas)
    assert [sum(one) for one in weights] == pytest.approx(steps.tolist(), rel=1e-9)
    assert late[True].rows[3].steps[3] == late[False].rows[3].steps[0]


@pytest.mark.parametrize("order", [0, -1, 2.0, True, None, "4"])
def test_orders_that_cannot_be(order: Any) -> None:
    scheduler = LMSDiscreteScheduler(**VP)
    with pytest.raises(InputError, match="order is"):
        scheduler.plan(5, order=order)


# refusals


@pytest.mark.parametrize("value", [0, -3, 1001, 10.5, True, "1000"])
@pytest.mark.parametrize("solver", TWICE)
def test_training_timesteps_that_cannot_be(solver: Any, value: Any) -> None:
    with pytest.raises(InputError, match="num_train_timesteps is"):
        solver(**VP).plan(5, num_train_timesteps=value)


def test_custom_timesteps_are_not_spread() -> None:
    scheduler = HeunDiscreteScheduler(**VP)
    assert scheduler.plan(timesteps=[900, 400, 3]).times == (900, 400, 400, 3, 3)
    with pytest.raises(InputError, match="num_train_timesteps"):
        scheduler.plan(timesteps=[900, 400, 3], num_train_timesteps=1000)
    with pytest.raises(InputError, match="numbers in"):
        scheduler.plan(timesteps=[1000, 400, 3])


@pytest.mark.parametrize("solver", SOLVERS)
def test_other_timetables_and_options_are_refused(solver: Any) -> None:
    scheduler = solver(**VP)
    with pytest.raises(UnknownArgumentError, match="sigmas"):
        scheduler.set_timesteps(sigmas=[5.0, 1.0, 0.0])
    with pytest.raises(UnknownArgumentError, match="s_churn"):
        scheduler.plan(5, s_churn=1.0)
    with pytest.raises(InputError, match="leading"):
        solver(**VP, timestep_spacing="leading").plan(1001)
    with pytest.raises(ConfigError, match="prediction_type"):
        solver(prediction_type="noise")
    with pytest.raises(ConfigError, match="beta_schedule"):
        solver(beta_schedule="cosine")
    plan = scheduler.plan(5)
    with pytest.raises(InputError, match="outside this plan"):
        scheduler.advance(plan, len(plan), torch.zeros(SHAPE), torch.zeros(SHAPE))


@pytest.mark.parametrize("solver", [EulerAncestralDiscreteScheduler, KDPM2AncestralDiscreteScheduler])
def test_missing_noise_is_named(solver: Any) -> None:
    scheduler = solver(**VP)
    plan = scheduler.plan(5)
    i = plan.needs_noise.index(True)
    with pytest.raises(InputError, match="adds noise"):
        scheduler.advance(plan, i, torch.zeros(SHAPE), torch.zeros(SHAPE), torch.zeros(SHAPE) if i else None)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_advance_leaves_what_it_was_given_alone(solver: Any) -> None:
    scheduler = solver(**VP)
    plan, generator = scheduler.plan(6), torch.Generator().manual_seed(0)
    x, state = torch.randn(SHAPE, generator=generator), None
    for i in range(len(plan)):
        y, z = torch.randn(SHAPE, generator=generator), scheduler.draw_noise(plan, i, x, generator)
        before = [x.clone(), y.clone(), None if z is None else z.clone()]
        one = scheduler.advance(plan, i, y, x, state, z)
        two = scheduler.advance(plan, i, y, x, state, z)
        assert torch.equal(one.sample, two.sample)
        assert all(old is None or torch.equal(old, new) for old, new in zip(before, [x, y, z], strict=True))
        x, state = one.sample, one.state


@pytest.mark.parametrize("solver", SOLVERS)
def test_both_surfaces_start_in_the_same_place(solver: Any) -> None:
    scheduler = solver(**VP)
    scheduler.set_timesteps(7)
    for begin in (3, 4):  # between two evaluations of a step, and before one
        seeded = {"generator": torch.Generator().manual_seed(1)} if "Ancestral" in solver.__name__ else {}
        scheduler.set_timesteps(7)
        scheduler.set_begin_index(begin)
        pure = pure_run(scheduler, scheduler.plan(7).start_at(begin), torch.Generator().manual_seed(1))
        assert torch.equal(familiar_run(scheduler, seeded, begin).samples, pure.samples)
