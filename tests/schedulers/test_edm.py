"""The solvers for EDM's networks by themselves: what they refuse, what a config means, what noise they draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safelight import (
    CosineDPMSolverMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)
from safelight.errors import ConfigError, InputError, UnknownArgumentError

from ..helpers.sampling import SHAPE, familiar_run, pure_run

SOLVERS = [EDMEulerScheduler, EDMDPMSolverMultistepScheduler, CosineDPMSolverMultistepScheduler]
each = pytest.mark.parametrize("solver", SOLVERS)


def _seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_min": 600.0}, "sigma_min is 600.0"),
        ({"sigma_data": 0.0}, "sigma_data is 0.0; a positive number"),
        ({"rho": -7.0}, "rho is -7.0; a positive number"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"sigma_schedule": "linear"}, "valid names: exponential, karras"),
        ({"prediction_type": "sample"}, "valid names: epsilon, v_prediction"),
        ({"final_sigmas_type": "one"}, "valid names: sigma_min, zero"),
    ],
)
@each
def test_configs_that_cannot_be(solver: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        solver(**config)


@pytest.mark.parametrize(
    ("solver", "config", "message"),
    [
        (EDMDPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver"}, "did you mean .dpmsolver\\+\\+"),
        (EDMDPMSolverMultistepScheduler, {"solver_type": "x"}, "solver_type"),
        (EDMDPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "no third order"),
        (CosineDPMSolverMultistepScheduler, {"solver_order": 3}, "solver_order"),
        (CosineDPMSolverMultistepScheduler, {"solver_type": "x"}, "solver_type"),
    ],
)
def test_methods_that_cannot_be(solver: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        solver(**config)


def test_names_of_other_solvers_become_this_ones() -> None:
    multistep = EDMDPMSolverMultistepScheduler(algorithm_type="deis", solver_type="logrho")
    assert (multistep.config.algorithm_type, multistep.config.solver_type) == ("dpmsolver++", "midpoint")
    assert CosineDPMSolverMultistepScheduler(solver_type="bh1").config.solver_type == "midpoint"


@each
def test_timetables_that_cannot_be(solver: Any) -> None:
    with pytest.raises(UnknownArgumentError, match="timesteps"):
        solver().plan(timesteps=[1.0, 0.5])
    with pytest.raises(UnknownArgumentError, match="mu"):
        solver().plan(5, mu=1.0)
    scheduler = solver()
    scheduler.set_timesteps(5)
    with pytest.raises(InputError, match="integer 0"):
        scheduler.step(torch.zeros(SHAPE), 0, torch.zeros(SHAPE))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@each
def test_a_network_that_knows_the_image_gives_it(solver: Any, prediction: str) -> None:
    scheduler = solver(prediction_type=prediction, sigma_data=0.7)
    plan = scheduler.plan(9)
    clean, noise = (torch.randn(SHAPE, generator=_seeded(seed)).double() for seed in (1, 2))
    for i, sigma in enumerate(plan.sigmas[:-1]):
        noisy = clean + sigma * noise
        torch.testing.assert_close(scheduler.noised(plan, i, clean, noise), noisy)
        output = scheduler.implied_output(plan, i, noisy, clean)
        torch.testing.assert_close(scheduler.precondition_outputs(noisy, output, sigma), clean)


def test_a_known_original_is_the_state() -> None:
    scheduler = EDMEulerScheduler()
    plan = scheduler.plan(4)
    x, y, known = (torch.randn(SHAPE, generator=_seeded(seed)) for seed in (1, 2, 3))
    step = scheduler.advance(plan, 1, y, x, known)
    sigma, following = plan.sigmas[1:3]
    torch.testing.assert_close(step.sample, known + (x - known) * following / sigma)
    assert step.pred_original_sample is known
    assert step.state is None


def test_steps_of_no_length_change_nothing() -> None:
    scheduler = EDMDPMSolverMultistepScheduler(final_sigmas_type="sigma_min", solver_order=3, lower_order_final=False)
    run = familiar_run_of(scheduler, 20)
    torch.testing.assert_close(run.samples[-1], run.samples[-2])
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2]


def familiar_run_of(scheduler: Any, steps: int, **step: Any) -> Any:
    scheduler.set_timesteps(steps)
    return familiar_run(scheduler, step)


def test_entries_of_other_solvers_mean_nothing() -> None:
    other = DPMSolverMultistepScheduler(use_karras_sigmas=True, solver_order=3, use_flow_sigmas=False)
    scheduler = EDMDPMSolverMultistepScheduler.from_config(other.config, sigma_max=20.0)
    plain = EDMDPMSolverMultistepScheduler(solver_order=3, sigma_max=20.0)
    assert torch.equal(familiar_run_of(scheduler, 8).samples, familiar_run_of(plain, 8).samples)


# Brownian noise


def test_noise_depends_on_the_seed_alone() -> None:
    scheduler = CosineDPMSolverMultistepScheduler()
    plan, x, used = scheduler.plan(6), torch.zeros(SHAPE), _seeded()
    torch.randn(100, generator=used)
    first = [scheduler.draw_noise(plan, i, x, used) for i in (3, 1, 0)]
    again = [scheduler.draw_noise(scheduler.plan(6), i, x, _seeded()) for i in (3, 1, 0)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], scheduler.draw_noise(plan, 3, x, _seeded(2)))
    assert [*plan.needs_noise] == [True] * 5 + [False]


def test_noise_of_a_row_is_that_of_its_generator() -> None:
    scheduler = CosineDPMSolverMultistepScheduler()
    plan, x = scheduler.plan(6), torch.zeros(SHAPE)
    both = scheduler.draw_noise(plan, 2, x, [_seeded(4), _seeded(5)])
    alone = scheduler.draw_noise(plan, 2, x[1:], [_seeded(5)])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])


def test_more_steps_follow_the_same_noise() -> None:
    """A step's noise is that of the two halves that it has in a run of twice the steps."""
    scheduler = CosineDPMSolverMultistepScheduler(final_sigmas_type="sigma_min")
    x = torch.zeros(SHAPE)
    coarse, fine = scheduler.plan(5), scheduler.plan(9)
    for i in range(4):
        torch.testing.assert_close(coarse.sigmas[i], fine.sigmas[2 * i])
        parts = []
        for plan, k in ((coarse, i), (fine, 2 * i), (fine, 2 * i + 1)):
            length = plan.sigmas[k] - plan.sigmas[k + 1]
            parts.append(scheduler.draw_noise(plan, k, x, _seeded()) * length**0.5)
        torch.testing.assert_close(parts[0], parts[1] + parts[2], atol=0.02, rtol=0)  # σ differs in its last digit


@pytest.mark.parametrize("generator", [None, _seeded()])
def test_noise_is_standard_normal(generator: Any) -> None:
    scheduler = CosineDPMSolverMultistepScheduler()
    plan, x = scheduler.plan(4), torch.zeros(1, 4, 100, 100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = torch.stack([scheduler.draw_noise(plan, i, x, generator) for i in range(3)]).reshape(3, -1)
    torch.testing.assert_close(torch.corrcoef(drawn), torch.eye(3), atol=0.02, rtol=0)
    assert drawn.std().item() == pytest.approx(1, abs=0.01)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)


def test_the_pure_run_is_the_familiar_one() -> None:
    scheduler = CosineDPMSolverMultistepScheduler(sigma_max=20.0)
    familiar = familiar_run_of(scheduler, 7, generator=_seeded())
    assert torch.equal(pure_run(scheduler, scheduler.plan(7), _seeded()).samples, familiar.samples)
