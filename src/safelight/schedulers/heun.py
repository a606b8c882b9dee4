"""Heun's method in σ (Karras et al. 2022, arXiv:2206.00364, algorithm 1)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from .base import Advance, Grid, Plan, SchedulerOutput
from .prediction import Mix
from .sigma import TwoEvaluationScheduler

HeunDiscreteSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    sigma: float
    change: float  # of σ in the whole step
    second: bool


class _Start(NamedTuple):
    """For the second evaluation: where the step began and the slope there, or halfway along it and no slope."""

    sample: torch.Tensor | None = None
    slope: torch.Tensor | None = None


class HeunDiscreteScheduler(TwoEvaluationScheduler):
    """Steps x ← x + (σ' − σ)·(d + d')/2: d = (x − x₀)/σ is the slope at x, d' that at the end of the Euler step with d.

    The last step, to σ' = 0, is Euler's. A run that begins with a second evaluation stands still there: its sample
    is at σ' already.
    """

    custom: ClassVar = ("timesteps",)

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        clip_sample: bool | None = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._set_up()

    def _told(self, times: np.ndarray, sigmas: np.ndarray, steps: int, corrected: bool, exact: bool = False) -> Grid:
        grid = super()._told(times, sigmas, steps, corrected, exact)
        grid.times[1::2] = grid.times[2::2]
        return grid

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        changes = np.diff(grid.sigmas)[::2].tolist()
        rows = [
            _Row(self._reading(sigma).x0, sigma, changes[i // 2], i % 2 == 1)
            for i, sigma in enumerate(grid.sigmas[:-1].tolist())
        ]
        return rows, [False] * len(rows)

    def initial_state(self, plan: Plan) -> _Start:
        return _Start()

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        half, x0 = row.change / 2, row.x0(sample, model_output)
        if self._limit is not None:
            x0 = self._limit(x0)
        if row.second and state.sample is None:
            return Advance(sample, state, x0)
        if self._predicts_slope:
            if row.second:
                return Advance(torch.add(state.sample, model_output, alpha=half), _Start(), x0)
            halfway = torch.add(sample, model_output, alpha=half)
            return Advance(torch.add(sample, model_output, alpha=row.change), _Start(halfway), x0)
        slope = (sample - x0).div_(row.sigma)
        if row.second:
            return Advance(slope.add_(state.slope).mul_(half).add_(state.sample), _Start(), x0)
        return Advance((slope * row.change).add_(sample), _Start(sample, slope), x0)
