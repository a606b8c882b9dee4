"""DEIS: its weights are integrals, it is exact where it should be, and it says what it cannot do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from safelight import DEISMultistepScheduler, DPMSolverMultistepScheduler
from safelight.errors import ConfigError, InputError
from safelight.schedulers.deis import polynomial_weights
from safelight.schedulers.prediction import training_target

from ..helpers.sampling import familiar_run, start


def _moment(power: int, rate: float, low: float, high: float) -> float:
    """∫ λ^power·e^(rate·(λ − high)) dλ from `low` to `high`, by parts."""
    if power < 0:
        return 0.0
    edge = high**power - low**power * math.exp(rate * (low - high))
    return (edge - power * _moment(power - 1, rate, low, high)) / rate


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("rate", [-1.0, 1.0, 2.0, 26.0, 5000.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_weights_integrate_polynomials_of_the_order_exactly(order: int, rate: float, ahead: int) -> None:
    lam = np.array([-4.1, -3.0, -2.7, -1.2, -0.3, 0.4, 1.9, 2.2])
    weights = polynomial_weights(lam, order, np.full(len(lam) - 1, rate), ahead)
    for i in range(max(order - 1 - ahead, 0), len(lam) - 1):
        nodes = lam[i + ahead - order + 1 : i + ahead + 1][::-1]
        for power in range(order):
            exact = _moment(power, rate, lam[i], lam[i + 1])
            scale = max(abs(weights[i] * nodes**power))
            assert weights[i] @ nodes**power == pytest.approx(exact, abs=1e-10 * scale)


def test_the_blunt_line_counts_its_slope_without_the_exponential() -> None:
    lam, rate = np.array([-1.0, -0.4, 0.5, 1.1]), 2.0
    for ahead in (0, 1):
        weights = polynomial_weights(lam, 2, rate, ahead, blunt=True)
        for i in range(1, 3):
            nodes, h = lam[[i + ahead, i + ahead - 1]], lam[i + 1] - lam[i]
            assert weights[i].sum() == pytest.approx(_moment(0, rate, lam[i], lam[i + 1]))
            assert weights[i] @ (nodes - lam[i]) == pytest.approx(h**2 / 2)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_one_image_is_reached_exactly_when_corrected(kind: str, flow: bool) -> None:
    scheduler = DEISMultistepScheduler(prediction_type=kind, solver_order=3, use_flow_sigmas=flow)
    quirk = kind == ("v_prediction" if flow else "flow_prediction")
    image, noise = start(1.0, 1).double(), start(1.0, 2).double()
    errors = []
    for corrected in (True, False):
        plan = scheduler.plan(17, corrected=corrected)
        x, state = scheduler.noised(plan, 0, image, noise), None
        for i in range(len(plan)):
            alpha, sigma = plan.levels[i]
            output = training_target(kind, image, (x - alpha * image) / sigma, alpha, sigma)
            x, state, x0 = scheduler.advance(plan, i, output, x, state)
        alpha, sigma = (float(part) for part in scheduler._alpha_sigma(plan.sigmas[-1]))
        errors.append((x - alpha * image - sigma * noise).abs().max().item())
        if corrected:
            assert x0 is not None
            assert (x0 - image).abs().max() < 1e-4
    assert errors[0] < 1e-5
    assert (errors[1] > 1e-2) == quirk


def test_names_of_other_solvers_are_taken_as_its_own() -> None:
    other = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_type="heun", solver_order=3)
    scheduler = DEISMultistepScheduler.from_config(other.config)
    assert (scheduler.config["algorithm_type"], scheduler.config["solver_type"]) == ("deis", "logrho")
    assert scheduler.config["solver_order"] == 3


@pytest.mark.parametrize(
    "config", [{"algorithm_type": "sde-dpmsolver++"}, {"solver_type": "rk4"}, {"solver_order": 4}], ids=str
)
def test_what_it_cannot_do_is_refused(config: dict) -> None:
    (name,) = config
    with pytest.raises(ConfigError, match=name):
        DEISMultistepScheduler(**config)


def test_coinciding_noise_levels() -> None:
    config = {"num_train_timesteps": 20, "beta_start": 0.002, "beta_end": 0.9}
    with pytest.raises(InputError, match="same noise level"):
        DEISMultistepScheduler(**config).plan(25)
    assert len(DEISMultistepScheduler(solver_order=1, **config).plan(25)) == 25
    scheduler = DEISMultistepScheduler(timestep_spacing="trailing", solver_order=3)
    runs = []
    for corrected in (False, True):
        scheduler.set_timesteps(769, corrected=corrected)  # else with an extra timestep, of the noise level before it
        runs.append(familiar_run(scheduler).samples)
    assert torch.equal(runs[0][:770], runs[1])
    assert torch.equal(runs[0][770], runs[0][769])
