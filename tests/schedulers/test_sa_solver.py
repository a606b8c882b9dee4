"""SA-Solver: what it is equal to in special cases, its state, its noise, and configs with a function in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import safelight
from safelight import DEISMultistepScheduler, DPMSolverMultistepScheduler, SASolverScheduler
from safelight.errors import ConfigError

from ..helpers.compare import relative_difference
from ..helpers.sampling import SHAPE, familiar_run, network, pure_run, start

DETERMINISTIC = {"tau_func": lambda t: 0.0, "corrector_order": 0}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8},
        {"prediction_type": "flow_prediction"},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    ],
    ids=lambda config: "-".join(config) or "plain",
)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_randomness_the_predictor_of_noise_is_deis(order: int, config: dict) -> None:
    ours = SASolverScheduler(predictor_order=order, algorithm_type="noise_prediction", **DETERMINISTIC, **config)
    deis = DEISMultistepScheduler(solver_order=order, **config)
    runs = []
    for scheduler in (ours, deis):
        plan = scheduler.plan(12, corrected=True)
        assert not any(plan.needs_noise)
        runs.append(pure_run(scheduler, plan, dtype=torch.float64))
    # α² + σ² is 1 up to float32 rounding, which the two readings of ε feel differently
    assert relative_difference(runs[0].samples, runs[1].samples) < 1e-6
    assert relative_difference(runs[0].originals, runs[1].originals) < 1e-6


def test_at_first_order_it_is_the_reverse_sde_of_dpm_solver() -> None:
    ours = SASolverScheduler(predictor_order=1, corrector_order=0, tau_func=lambda t: 1.0)
    sde = DPMSolverMultistepScheduler(
        solver_order=1, algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min", lower_order_final=False
    )
    noise = start(1.0, 5)
    runs = [pure_run(s, s.plan(9), noise=noise, dtype=torch.float64).samples for s in (ours, sde)]
    assert relative_difference(*runs) < 1e-9


@pytest.mark.parametrize("algorithm", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize("order", [1, 3, 6])
def test_one_image_is_reached_exactly(order: int, algorithm: str) -> None:
    config = {"predictor_order": order, "corrector_order": order, "lower_order_final": False}
    scheduler = SASolverScheduler(algorithm_type=algorithm, tau_func=lambda t: 0.0, **config)
    plan = scheduler.plan(15)
    image, noise = start(1.0, 1).double(), start(1.0, 2).double()
    x, state = scheduler.noised(plan, 0, image, noise), scheduler.initial_state(plan)
    for i in range(len(plan)):
        alpha, sigma = plan.levels[i]
        x, state, _ = scheduler.advance(plan, i, (x - alpha * image) / sigma, x, state)
    alpha, sigma = scheduler._alpha_sigma(plan.sigmas[-1])
    assert (x - alpha * image - sigma * noise).abs().max() < 1e-5


def test_the_corrector_takes_the_step_before_again() -> None:
    plain, corrected = (SASolverScheduler(predictor_order=1, corrector_order=order) for order in (0, 1))
    runs = [pure_run(s, s.plan(8), noise=start(1.0, 5)).samples for s in (plain, corrected)]
    assert torch.equal(runs[0][:2], runs[1][:2])  # nothing came before the first step
    assert relative_difference(runs[0][2], runs[1][2]) > 1e-3


def test_a_run_goes_on_from_a_state_taken_apart() -> None:
    scheduler = SASolverScheduler(predictor_order=3, corrector_order=4)
    plan, noise = scheduler.plan(10), start(1.0, 5)
    whole = pure_run(scheduler, plan, noise=noise).samples
    x, state = whole[0], scheduler.initial_state(plan)
    for i in range(len(plan)):
        state = type(scheduler.initial_state(plan))(*tuple(state))
        x, state, _ = scheduler.advance(plan, i, network(x, plan.timesteps[i]), x, state, noise)
        assert len(state.outputs) == min(i + 1, 3)
    assert torch.equal(x, whole[-1])


def test_noise_counts_where_tau_says_and_is_drawn_everywhere() -> None:
    ours, theirs = (library.SASolverScheduler() for library in (safelight, diffusers))
    after, runs = [], []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
        generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
        runs.append(familiar_run(scheduler, {"generator": generators}).samples)
        after.append(torch.stack([torch.randn(3, generator=generator) for generator in generators]))
    assert relative_difference(*runs) <= 1e-5
    assert torch.equal(*after)
    plan = ours.plan(10)
    assert plan.needs_noise == tuple(200 <= t <= 800 for t in plan.times)


def test_tau_is_a_function_of_the_timestep() -> None:
    seen: list[Any] = []
    scheduler = SASolverScheduler(tau_func=lambda t: seen.append(t) or torch.tensor(0.5))
    plan = scheduler.plan(6)
    assert [t.item() for t in seen] == list(plan.times)
    assert all(plan.needs_noise)
    with pytest.raises(ConfigError, match=r"tau_func is 0\.5, not a function"):
        SASolverScheduler(tau_func=0.5)
    for wrong in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match="at timestep 999"):
            SASolverScheduler(tau_func=lambda t, wrong=wrong: wrong).plan(5)


@pytest.mark.parametrize(
    "config",
    [{"predictor_order": 0}, {"corrector_order": -1}, {"algorithm_type": "dpmsolver++"}, {"prediction_type": "noise"}],
    ids=str,
)
def test_what_it_cannot_do_is_refused(config: dict) -> None:
    (name,) = config
    with pytest.raises(ConfigError, match=name):
        SASolverScheduler(**config)


def test_a_config_with_a_function_is_shown_and_converted_but_not_saved(tmp_path: Path) -> None:
    scheduler = SASolverScheduler(tau_func=network, use_karras_sigmas=True)
    assert "function network" in repr(scheduler)
    other = DPMSolverMultistepScheduler.from_config(scheduler.config)
    assert SASolverScheduler.from_config(other.config).config["tau_func"] is network
    for one in (scheduler, other):
        with pytest.raises(ConfigError, match="tau_func is <function network"):
            one.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())
    type(scheduler).from_config({**scheduler.config, "tau_func": None}).save_pretrained(tmp_path)
    again = SASolverScheduler.from_pretrained(tmp_path, tau_func=network)
    assert again.config["tau_func"] is network
    assert again.config["use_karras_sigmas"]
    assert SASolverScheduler.from_pretrained(tmp_path).config["tau_func"] is None


@pytest.mark.parametrize("begin", [False, True])
def test_noise_is_added_at_training_timesteps(begin: bool) -> None:
    clean, noise, times = start(1.0, 1), start(1.0, 2), torch.tensor([37, 950])
    for config in ({}, {"use_flow_sigmas": True}):
        results = []
        for library in (safelight, diffusers):
            scheduler = library.SASolverScheduler(**config)
            if begin:
                scheduler.set_timesteps(7)
                scheduler.set_begin_index(3)
            results.append(scheduler.add_noise(clean, noise, times))
        assert torch.equal(*results)


def test_with_flow_sigmas_noise_is_that_of_the_run_when_corrected() -> None:
    scheduler = SASolverScheduler(use_flow_sigmas=True)
    scheduler.set_timesteps(7)
    clean, noise = torch.zeros(SHAPE), torch.ones(SHAPE)
    noisy = scheduler.add_noise(clean, noise, scheduler.timesteps[[2, 4]], corrected=True)
    assert torch.equal(noisy[:, 0, 0, 0], scheduler.sigmas[[2, 4]])
    plain = SASolverScheduler()
    assert torch.equal(plain.add_noise(clean, noise, torch.tensor([3, 4]), corrected=True)[:, 0, 0, 0],
                       plain.add_noise(clean, noise, torch.tensor([3, 4]))[:, 0, 0, 0])  # fmt: skip
