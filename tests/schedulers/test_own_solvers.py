"""A further solver is a short class: a second-order one, a multistep one, and one with its own noise and timetable."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch

from safelight import EulerDiscreteScheduler, register_to_config
from safelight.schedulers.base import Advance, Grid, Plan, Scheduler
from safelight.schedulers.prediction import Mix, reading
from safelight.schedulers.sigma import SigmaScheduler

from ..helpers.sampling import familiar_run, pure_run
from .test_solvers import SPREAD, VP, gaussian_error, gaussian_sample


class SmallConfig(SigmaScheduler):
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ):
        self._set_up()


class HeunRow(NamedTuple):
    x0: Mix
    sigma: float
    change: float
    second: bool


class Heun(SmallConfig):
    """Karras et al. 2022, algorithm 1: every step but the last is evaluated at both ends."""

    order = 2

    def _grid(self, steps: int, corrected: bool) -> Grid:
        grid = super()._grid(steps, corrected)
        assert grid.sigmas is not None
        twice = np.append(1, np.full(steps - 1, 2))
        return grid._replace(times=np.repeat(grid.times, twice), sigmas=np.repeat(grid.sigmas, np.append(twice, 1)))

    def _rows(self, grid: Grid) -> tuple[list[HeunRow], list[bool]]:
        assert grid.sigmas is not None
        rows, sigmas = [], grid.sigmas.tolist()
        for i, sigma in enumerate(sigmas[:-1]):
            change = sigma - sigmas[i - 1] if i % 2 else sigmas[i + 1] - sigma
            rows.append(HeunRow(self._reading(sigma).x0, sigma, change, i % 2 == 1))
        return rows, [False] * len(rows)

    def _advance(self, row: HeunRow, output: Any, sample: Any, state: Any, noise: Any) -> Advance:
        x0 = row.x0(sample, output)
        slope = (sample - x0) / row.sigma
        if row.second:
            start, first = state
            return Advance(start + (first + slope) / 2 * row.change, None, x0)
        return Advance(sample + slope * row.change, (sample, slope), x0)


class TwoStep(SmallConfig):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) in σ; the state is the previous x₀."""

    def _rows(self, grid: Grid) -> tuple[list[Any], list[bool]]:
        assert grid.sigmas is not None
        sigmas = grid.sigmas.tolist()
        lambdas = [-math.log(sigma) for sigma in sigmas[:-1]] + [math.inf]
        h = [after - before for before, after in pairwise(lambdas)]
        rows = [
            (
                self._reading(sigmas[i]).x0,
                sigmas[i + 1] / sigmas[i],
                h[i] / (2 * h[i - 1]) if i and sigmas[i + 1] else 0.0,
            )
            for i in range(len(grid.times))
        ]
        return rows, [False] * len(rows)

    def _advance(self, row: Any, output: Any, sample: Any, state: Any, noise: Any) -> Advance:
        read, keep, ahead = row
        x0 = read(sample, output)
        target = x0 if state is None else x0 + ahead * (x0 - state)
        return Advance(torch.lerp(target, sample, keep), x0, x0)


class Flow(Scheduler):
    """Euler on the straight path x = (1 − σ)·x₀ + σ·ε, with a timetable shifted to high noise."""

    timetable_options: ClassVar = {"shift": 1.0}
    custom = ()

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000):
        self._limit = None

    def _training_grid(self, corrected: bool) -> Grid:
        return self._grid(len(self), corrected)

    def _grid(self, steps: int, corrected: bool, shift: float = 1.0) -> Grid:
        even = np.linspace(1, 0, steps + 1)
        sigmas = (shift * even / (1 + (shift - 1) * even)).astype(np.float32)
        return Grid(sigmas[:-1] * len(self), steps, sigmas)

    def _levels(self, grid: Grid) -> list[tuple[float, float]]:
        assert grid.sigmas is not None
        return [(1 - sigma, sigma) for sigma in grid.sigmas[:-1].tolist()]

    def _rows(self, grid: Grid) -> tuple[list[Any], list[bool]]:
        assert grid.sigmas is not None
        reads = [reading("flow_prediction", alpha, sigma).x0 for alpha, sigma in self._levels(grid)]
        return list(zip(reads, np.diff(grid.sigmas).tolist(), strict=True)), [False] * len(reads)

    def _advance(self, row: Any, output: Any, sample: Any, state: Any, noise: Any) -> Advance:
        return Advance(sample + row[1] * output, None, row[0](sample, output))


@pytest.mark.parametrize("solver", [Heun, TwoStep])
def test_second_order_solvers_converge_as_such(solver: Any) -> None:
    scheduler, euler = solver(**VP), EulerDiscreteScheduler(timestep_spacing="leading", **VP)
    coarse, fine = (gaussian_error(scheduler, scheduler.plan(steps)) for steps in (24, 96))
    assert coarse > 4 * fine
    assert fine < 0.6 * gaussian_error(euler, euler.plan(96))


def test_a_flow_solver_with_a_shifted_timetable() -> None:
    scheduler = Flow()
    assert list(inspect.signature(scheduler.set_timesteps).parameters)[:3] == ["num_inference_steps", "device", "shift"]
    assert "shift" not in inspect.signature(scheduler.step).parameters
    plan = scheduler.plan(200, shift=3.0)
    assert plan.levels[100][1] == pytest.approx(0.75, abs=1e-6)

    def network(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        x0 = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * x
        return (x - alpha * x0) / sigma - x0

    assert gaussian_sample(scheduler, plan, torch.ones(1, 1), network=network).item() == pytest.approx(SPREAD, rel=0.02)


@pytest.mark.parametrize("solver", [Heun, TwoStep])
def test_they_have_the_familiar_surface(solver: Any) -> None:
    scheduler: Any = solver(**VP)
    scheduler.set_timesteps(9)
    plan: Plan = scheduler.plan(9)
    assert (scheduler.order, plan.order) == (solver.order, solver.order)
    assert torch.equal(familiar_run(scheduler).samples, pure_run(scheduler, plan).samples)
    assert solver.from_config(scheduler.config).config == scheduler.config
