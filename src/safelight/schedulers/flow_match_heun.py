"""Heun's method on the straight path from noise to data (Karras et al. 2022, arXiv:2206.00364, algorithm 1)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError
from .base import Advance, Grid, SchedulerOutput
from .flow import FlowScheduler
from .prediction import Mix

FlowMatchHeunDiscreteSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    half: float  # of the step's change of σ, with the weight of this evaluation's output
    second: bool
    keep: float = 1.0  # how much of x stays
    churn: float = 0.0  # where noise of this weight is added first


class FlowMatchHeunDiscreteScheduler(FlowScheduler):
    """Steps x ← x + (σ' − σ)·(y + y')/2, y' from x + (σ' − σ)·y at σ': two evaluations a step, one for the last.

    Run options, as in the paper: `s_churn` spreads over the steps whose σ is within [`s_tmin`, `s_tmax`] fresh noise
    of standard deviation `s_noise`, raising σ to σ̂ = (1 + γ)·σ. The reference adds it as to x₀ + σ·ε, which leaves the
    path, and takes y for (σ/σ̂)·y; `corrected` goes from (1 − σ)·x₀ + σ·ε to (1 − σ̂)·x₀ + σ̂·ε, σ̂ ≤ 1.

    A run that starts at the second evaluation of a step goes on with the next step.
    """

    order = 2
    custom: ClassVar = ()
    timetable_options: ClassVar = {}
    options: ClassVar = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0}

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        self._set_up()

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next evaluation begins a step."""
        return self._state is None

    def set_shift(self, shift: float) -> None:
        """Not for this scheduler: its shift is the config's."""
        raise InputError(f"{type(self).__name__} has no set_shift; give shift={shift!r} to the constructor")

    def _grid(self, steps: int, corrected: bool, mu: float | None = None) -> Grid:
        once = super()._grid(steps, corrected)
        assert once.sigmas is not None
        twice = np.array([1] + [2] * (steps - 1))
        sigmas = np.repeat(once.sigmas, np.append(twice, 1))
        return once._replace(times=np.repeat(once.times, twice), sigmas=sigmas)

    def _rows(
        self, grid: Grid, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        sigmas, rows, churned = grid.sigmas.tolist(), [], []
        most = min(s_churn / (len(sigmas) - 1), 2**0.5 - 1)
        readings = self._x0_readings(grid)
        for i in range(0, len(readings), 2):
            sigma, following = sigmas[i : i + 2]
            churn = most > 0 and s_tmin <= sigma <= s_tmax
            raised = sigma * (1 + most) if churn else sigma
            keep, weight = 1.0, sigma / raised
            if grid.corrected:
                raised, weight = min(raised, max(sigma, 1.0)), 1.0
                keep = (1 - raised) / (1 - sigma) if raised > sigma else 1.0
            half = (following - raised) / 2
            added = max(raised**2 - (keep * sigma) ** 2, 0.0) ** 0.5 * s_noise
            last = i + 1 == len(readings)
            rows.append(_Row(readings[i], half * weight, False, keep, added))
            rows += [] if last else [_Row(readings[i + 1], half, True)]
            churned += [churn] * (1 if last else 2)  # the second draw changes nothing, but the reference makes it
        return rows, churned

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x = sample.float()
        x0 = row.x0(x, model_output)
        if row.second:
            previous = sample if state is None else torch.add(state, model_output, alpha=row.half)
            return Advance(previous.type_as(model_output), None, x0)
        if noise is not None and row.churn:
            x = Mix(row.keep, row.churn)(x, noise)
        halfway = torch.add(x, model_output, alpha=row.half)
        return Advance(torch.add(halfway, model_output, alpha=row.half).type_as(model_output), halfway, x0)
