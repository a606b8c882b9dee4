"""DPM-Solver: its weights are integrals, it is exact where it should be, and it says what it cannot do."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

import safelight
from safelight.errors import ConfigError, InputError
from safelight.schedulers.dpm import Exponential
from safelight.schedulers.prediction import training_target

from ..helpers.compare import relative_difference
from ..helpers.sampling import pure_run, start

MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
INVERSE = "DPMSolverMultistepInverseScheduler"
NOISY_END = {"final_sigmas_type": "sigma_min"}
# The rate of the exponential in the integral, and what stands before it, of α and σ at the end of the step.
KINDS = {"dpmsolver++": (1, (1, 0)), "dpmsolver": (-1, (0, -1))}
KINDS |= {"sde-dpmsolver++": (2, (2, 0)), "sde-dpmsolver": (-1, (0, -2))}


def _make(name: str, **config: Any) -> Any:
    return getattr(safelight, name)(**config)


def _integral(kind: str, power: int, lam: np.ndarray, i: int, begin: int, level: Any) -> float:
    """∫ ((λ − λ_begin)/h)^power/power! with the kernel of `kind`, from evaluation `begin` to the end of step i."""
    rate, scale = KINDS[kind]
    x, weight = np.polynomial.legendre.leggauss(30)
    h = lam[i + 1] - lam[begin]
    u = (x + 1) / 2
    inside = np.exp(-rate * (1 - u) * h) * u**power / math.factorial(power)
    return float(np.dot(scale, level) * h / 2 * (weight * inside).sum())


def _track(count: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lam = np.cumsum([-2.0, 0.3, 1.1, 0.5, 0.02, 0.7, 1.6, 0.4][: count + 1])
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lam))
    return alpha, alpha * np.exp(-lam), lam


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("back", [0, 1, 2])
def test_the_exact_part_is_an_integral(kind: str, back: int) -> None:
    alpha, sigma, lam = track = _track()
    begins = np.maximum(np.arange(7) - back, 0)
    part = Exponential(kind, track, begins, corrected=True)
    quirk = Exponential(kind, track, begins)
    for i, begin in enumerate(begins):
        for power, weights in enumerate(part.weights):
            exact = _integral(kind, power, lam, i, begin, (alpha[i + 1], sigma[i + 1]))
            assert weights[i] == pytest.approx(exact, rel=1e-9)
            slip = power == 2 and kind == "sde-dpmsolver++"
            assert (quirk.weights[power][i] != pytest.approx(exact, rel=1e-9)) == slip


@pytest.mark.parametrize("kind", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
def test_a_step_of_first_order_ends_at_the_next_level(kind: str) -> None:
    """What it keeps of the noise, weighs by ε, and adds, has the variance of the next level; the signal is there."""
    alpha, sigma, _ = track = _track()
    part = Exponential(kind, track, np.arange(7))
    kept = part.keep * sigma[:-1] + (0 if kind.endswith("++") else part.weights[0])
    assert np.allclose(kept**2 + part.spread**2, sigma[1:] ** 2)
    assert np.allclose(part.keep * alpha[:-1] + (part.weights[0] if kind.endswith("++") else 0), alpha[1:])


@pytest.mark.parametrize("kind", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
@pytest.mark.parametrize(
    ("name", "solver_type", "degree"),
    [(MULTISTEP, "midpoint", 2), (MULTISTEP, "heun", 2), (SINGLESTEP, "heun", 2), (SINGLESTEP, "midpoint", 1)],
)
def test_third_order_is_exact_for_polynomials(name: str, solver_type: str, degree: int, kind: str) -> None:
    config = {"solver_order": 3, "solver_type": solver_type, "algorithm_type": kind, "use_exponential_sigmas": True}
    scheduler = _make(name, **config, **NOISY_END)
    exact = {}
    for corrected in (False, True):
        plan = scheduler.plan(18, corrected=corrected)
        alpha, sigma, lam = scheduler._track(plan.grid)
        i = 11
        begin, step = i - 2 if name == SINGLESTEP else i, plan.rows[i].steps[2]
        at = (lam[[i, i - 1, i - 2]] - lam[begin]) / (lam[i + 1] - lam[begin])
        for power in range(3):
            value = np.dot(step.weights, at**power) / math.factorial(power)
            true = _integral(kind, power, lam, i, begin, (alpha[i + 1], sigma[i + 1]))
            exact[corrected, power] = value == pytest.approx(true, rel=1e-6)
    assert [exact[True, power] for power in range(3)] == [True, True, degree == 2]
    slips = name == MULTISTEP or (solver_type == "heun" and kind.startswith("sde"))
    assert [exact[False, power] for power in range(3)] == [True, True, degree == 2 and not slips]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", [MULTISTEP, SINGLESTEP, INVERSE])
def test_a_run_stays_on_the_line_of_one_image_when_corrected(name: str, order: int, algorithm: str, kind: str) -> None:
    config = {} if name == INVERSE else NOISY_END
    scheduler = _make(name, solver_order=order, algorithm_type=algorithm, prediction_type=kind, **config)
    plan, lines = scheduler.plan(9, corrected=True), []
    image, noise = start(1.0, 1).double(), start(1.0, 2).double()
    x, state = scheduler.noised(plan, 0, image, noise), scheduler.initial_state(plan)
    for i, (alpha, sigma) in enumerate(plan.levels):
        lines.append(relative_difference(x, alpha * image + sigma * noise))
        y = training_target(kind, image, noise, alpha, sigma)
        x, state, x0 = scheduler.advance(plan, i, y, x, state)
        assert alpha < 0.1 or relative_difference(x0, image) < 1e-4
    alpha, sigma = (float(part) for part in scheduler._alpha_sigma(plan.sigmas[-1]))
    assert max(*lines, relative_difference(x, alpha * image + sigma * noise)) < 1e-5


# single steps


@pytest.mark.parametrize(
    ("order", "lower", "end", "orders"),
    [
        (1, False, "zero", [1, 1, 1]),
        (2, True, "zero", [1, 2, 1, 1]),
        (2, True, "sigma_min", [1, 2, 1, 1]),
        (2, False, "sigma_min", [1, 2, 1, 2]),
        (2, False, "sigma_min", [1, 2, 1]),
        (3, False, "sigma_min", [1, 2, 3, 1, 2, 3]),
        (3, True, "sigma_min", [1, 2, 3, 1, 2, 1]),
        (3, False, "sigma_min", [1, 2, 3, 1]),
        (3, False, "sigma_min", [1, 2, 3, 1, 2]),
        (3, False, "zero", [1, 2, 3, 1, 1]),
        (3, False, "zero", [1, 2, 1]),
        (3, False, "zero", [1, 1]),
    ],
)
def test_orders_of_the_evaluations(
    order: int, lower: bool, end: str, orders: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = _make(SINGLESTEP, solver_order=order, lower_order_final=lower, final_sigmas_type=end)
    config = dict(scheduler.config)
    with caplog.at_level(logging.WARNING, "safelight"):
        plan = scheduler.plan(len(orders))
    assert [len(row.steps) for row in plan.rows] == orders
    assert ("order is lowered" in caplog.text) == (not lower and (end == "zero" or len(orders) % order > 0))
    assert dict(scheduler.config) == config


def test_evaluations_of_a_step_start_where_it_does() -> None:
    """The step of third order does not depend on where the evaluations of lower order have led, but for the outputs."""
    scheduler = _make(SINGLESTEP, solver_order=3, **NOISY_END)
    plan, x, elsewhere = scheduler.plan(6), start(1.0), start(1.0, 9)
    outputs = [start(1.0, seed) for seed in (2, 3, 4)]
    results = []
    for other in (False, True):
        state = scheduler.initial_state(plan)
        seen = [x, elsewhere, elsewhere] if other else [x, x, x]
        for i, (place, x0) in enumerate(zip(seen, outputs, strict=True)):
            y = scheduler.implied_output(plan, i, place, x0)
            sample, state, _ = scheduler.advance(plan, i, y, place, state)
        results.append(sample)
    # At σ > 50 an output says x₀ only up to rounding.
    assert relative_difference(*results) < 1e-4


@pytest.mark.parametrize("name", [MULTISTEP, SINGLESTEP])
def test_limited_noise_is_that_of_the_limited_image(name: str) -> None:
    """At first order both algorithms are DDIM."""
    runs = []
    for algorithm in ("dpmsolver", "dpmsolver++"):
        config = {"solver_order": 1, "algorithm_type": algorithm, "thresholding": True, "sample_max_value": 1.5}
        scheduler = _make(name, **config, **NOISY_END)
        runs.append(pure_run(scheduler, scheduler.plan(11), dtype=torch.float64))
    assert relative_difference(runs[0].samples, runs[1].samples) < 1e-6
    assert relative_difference(runs[0].originals, runs[1].originals) < 1e-6


# upwards


def test_before_its_first_run_the_timetable_rises_over_all_of_the_training() -> None:
    scheduler = _make(INVERSE)
    assert scheduler.timesteps.tolist() == [*range(1000)]
    assert (scheduler.sigmas.diff()[:-1] > 0).all()


@pytest.mark.parametrize("config", [{"use_karras_sigmas": True}, {"timestep_spacing": "linspace"}], ids=str)
def test_timesteps_that_come_twice_have_their_own_noise_when_corrected(config: dict) -> None:
    scheduler = _make(INVERSE, **config)
    trained = scheduler._training_sigmas()
    apart = {}
    for corrected in (False, True):
        plan = scheduler.plan(1300, corrected=corrected)
        times = np.array(plan.times)
        assert (np.diff(times) > 0).all()
        assert len(plan.sigmas) == len(times) + 1
        between = np.interp(np.log(plan.sigmas[:-1]), np.log(trained), np.arange(1000))
        apart[corrected] = abs(between - times).max()
        assert (plan.sigmas[-1] == pytest.approx(trained[-1])) == corrected
    assert apart[True] < 0.51
    assert apart[False] > 10


def test_a_run_up_and_down_comes_back() -> None:
    config = {"solver_order": 2, "beta_schedule": "scaled_linear", "use_exponential_sigmas": True}
    up, down = _make(INVERSE, **config), _make(MULTISTEP, **config, **NOISY_END)
    errors = []
    for steps in (50, 100, 200):
        x = first = start(0.5, 3).double()
        for scheduler in (up, down):
            plan, state = scheduler.plan(steps), None
            for i, (alpha, sigma) in enumerate(plan.levels[:-1]):  # the last step has no length
                x0 = alpha * x / (alpha**2 + 4 * sigma**2)  # of data with a spread of 1/2
                x, state, _ = scheduler.advance(plan, i, scheduler.implied_output(plan, i, x, x0), x, state)
            errors.append(relative_difference(x, first))
    assert errors[0] > 0.5  # the noise
    assert errors[1] < 0.05
    assert errors[3] < errors[1] / 2.5
    assert errors[5] < errors[3] / 2.5


# configs


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (SINGLESTEP, {"algorithm_type": "sde-dpmsolver"}),
        (SINGLESTEP, {"algorithm_type": "dpmsolver"}),
        (SINGLESTEP, {"algorithm_type": "ddim"}),
        (SINGLESTEP, {"solver_order": 4}),
        (SINGLESTEP, {"final_sigmas_type": "one"}),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver"}),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver", "solver_order": 3, **NOISY_END}),
        (MULTISTEP, {"solver_type": "rk4"}),
        (INVERSE, {"algorithm_type": "sde-dpmsolver"}),
        (INVERSE, {"algorithm_type": "sde-dpmsolver++"}),
        (INVERSE, {"solver_order": 0}),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(name: str, config: dict) -> None:
    first = next(iter(config))
    with pytest.raises(ConfigError, match=first):
        _make(name, **config)


@pytest.mark.parametrize("name", [MULTISTEP, SINGLESTEP, INVERSE])
def test_names_of_other_solvers_are_taken_as_its_own(name: str) -> None:
    for kind, form in (("deis", "logrho"), ("dpmsolver++", "bh1"), ("deis", "bh2")):
        config = _make(name, algorithm_type=kind, solver_type=form).config
        assert (config["algorithm_type"], config["solver_type"]) == ("dpmsolver++", "midpoint")


def test_mu_needs_dynamic_shifting() -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    with pytest.raises(InputError, match="use_dynamic_shifting"):
        _make(SINGLESTEP, **flow).plan(8, mu=0.7)
    scheduler = _make(SINGLESTEP, use_dynamic_shifting=True, **flow)
    shifted = _make(SINGLESTEP, flow_shift=math.exp(0.7), **flow)
    assert scheduler.plan(8, mu=0.7).sigmas == shifted.plan(8).sigmas
    assert scheduler.config["flow_shift"] == 1.0
