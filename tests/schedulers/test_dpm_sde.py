"""What is DPM-Solver SDE's own: noise from a seed or from a generator, with the law of one Brownian motion."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch

from safelight import DPMSolverSDEScheduler, brownian
from safelight.errors import InputError
from safelight.schedulers.dpm_sde import _State

from ..helpers.sampling import familiar_run, network, pure_run, start

MANY = (1, 1, 100, 300)


def _draws(scheduler: DPMSolverSDEScheduler, plan: Any, x: torch.Tensor, generator: Any = None) -> list[torch.Tensor]:
    """The noise that reaches each sample but the last, in units of its standard deviation."""
    found, state, zero = [], scheduler.initial_state(plan), torch.zeros_like(x)
    for i in range(len(plan) - 1):
        noise = scheduler.draw_noise(plan, i, x, generator)
        with_noise = scheduler.advance(plan, i, zero, x, state, noise)
        row = plan.rows[i]
        on_x0, *shared = row.step.weights
        quiet = row.step.on_x * (state.start if row.second else x) + on_x0 * with_noise.pred_original_sample
        found.append((with_noise.sample - quiet) / math.hypot(*shared, row.step.on_noise))
        state = with_noise.state
    return found


@pytest.mark.parametrize("seed", [None, 5])
def test_noise_is_the_increments_of_one_motion(seed: int | None) -> None:
    scheduler = DPMSolverSDEScheduler(noise_sampler_seed=seed)
    plan = scheduler.plan(4)
    assert plan.needs_noise == (True,) * 6 + (False,)
    noise = torch.stack(_draws(scheduler, plan, torch.zeros(MANY), torch.Generator().manual_seed(0))).flatten(1)
    expected = torch.eye(6)
    for k in (0, 2, 4):
        (start_, middle), (_, end) = plan.rows[k].span, plan.rows[k + 1].span
        assert (start_ - middle) * (middle - end) > 0
        expected[k, k + 1] = expected[k + 1, k] = ((start_ - middle) / (start_ - end)) ** 0.5
    assert (noise @ noise.T / noise.shape[1] - expected).abs().max() < 6 * noise.shape[1] ** -0.5


def test_with_a_seed_the_generator_says_nothing_and_without_one_everything() -> None:
    for seed, same in ((3, True), ([3, 4], True), (None, False)):
        runs = []
        for i in (1, 1, 2):
            scheduler = DPMSolverSDEScheduler(noise_sampler_seed=seed)
            scheduler.set_timesteps(4)
            runs.append(familiar_run(scheduler, {"generator": torch.Generator().manual_seed(i)}).samples)
        assert torch.equal(runs[0], runs[1])
        assert torch.equal(runs[0], runs[2]) is same


def test_an_image_with_its_own_seed_is_the_same_in_every_batch() -> None:
    whole, alone = (DPMSolverSDEScheduler(noise_sampler_seed=seed) for seed in ([8, 9, 10], [9]))
    plan, x = whole.plan(3), torch.zeros(3, 4)
    noise = alone.draw_noise(alone.plan(3), 1, x[:1])
    assert torch.equal(whole.draw_noise(plan, 1, x)[1:2], noise)  # type: ignore[index,arg-type]
    with pytest.raises(InputError, match="3 noise seeds"):
        whole.draw_noise(plan, 1, x[:2])


def test_noise_depends_on_the_arguments_alone() -> None:
    scheduler = DPMSolverSDEScheduler(noise_sampler_seed=11)
    plan, x = scheduler.plan(6), start(1.0)
    in_turn = [scheduler.draw_noise(plan, i, x) for i in range(10)]
    for i in (7, 2, 2, 9, 0):
        again = DPMSolverSDEScheduler(noise_sampler_seed=11)
        for other in (plan, again.plan(6)):
            assert torch.equal(again.draw_noise(other, i, x), in_turn[i])  # type: ignore[arg-type]
        scheduler.draw_noise(plan, i, x[:1])
        scheduler.draw_noise(plan, i, x.double())
        assert torch.equal(scheduler.draw_noise(plan, i, x), in_turn[i])  # type: ignore[arg-type]
    late = plan.start_at(4)
    assert torch.equal(scheduler.draw_noise(late, 3, x), in_turn[7])  # type: ignore[arg-type]
    assert scheduler.draw_noise(plan, 10, x) is None


def test_what_is_remembered_of_a_motion_goes_with_the_plan() -> None:
    scheduler = DPMSolverSDEScheduler(noise_sampler_seed=1)
    gc.collect()
    before, plan = len(brownian._TREES), scheduler.plan(3)
    scheduler.draw_noise(plan, 0, start(1.0))
    assert len(brownian._TREES) == before + 1
    del plan
    gc.collect()
    assert len(brownian._TREES) == before


@pytest.mark.parametrize("seed", [None, 5])
def test_a_run_can_stop_and_go_on_anywhere(seed: int | None) -> None:
    scheduler = DPMSolverSDEScheduler(noise_sampler_seed=seed)
    plan = scheduler.plan(5)
    whole = pure_run(scheduler, plan, torch.Generator().manual_seed(1)).samples
    x, state, generator = whole[0], scheduler.initial_state(plan), torch.Generator().manual_seed(1)
    for i in range(len(plan)):
        other = DPMSolverSDEScheduler(noise_sampler_seed=seed)
        plan, state = other.plan(5), _State(*state)
        y = network(other.scale_input(plan, i, x), plan.timesteps[i])
        x, state, _ = other.advance(plan, i, y, x, state, other.draw_noise(plan, i, x, generator))
        assert torch.equal(x, whole[i + 1])
    assert state == _State()


def test_refusals() -> None:
    for seed in (-1, 1.5, "3", [2, -3], True, []):
        with pytest.raises(InputError, match="noise_sampler_seed"):
            DPMSolverSDEScheduler(noise_sampler_seed=seed)  # type: ignore[arg-type]
    scheduler = DPMSolverSDEScheduler()
    plan, x = scheduler.plan(4), start(1.0)
    with pytest.raises(InputError, match="second evaluation"):
        scheduler.advance(plan, 1, x, x, None, x)
    with pytest.raises(InputError, match="noise"):
        scheduler.advance(plan, 0, x, x)


def test_a_step_of_no_length_adds_no_noise() -> None:
    scheduler = DPMSolverSDEScheduler(num_train_timesteps=20, timestep_spacing="trailing", noise_sampler_seed=3)
    plan = scheduler.plan(30)
    lengths = [row.span[0] - row.span[1] for row in plan.rows]
    assert [length != 0 for length in lengths[:-1]] == list(plan.needs_noise[:-1])
    assert not all(plan.needs_noise[:-1])
    assert pure_run(scheduler, plan).samples.isfinite().all()
