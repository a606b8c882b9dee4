"""DDIM: deterministic (η = 0) to ancestral (η = 1) sampling (Song et al. 2021, arXiv:2010.02502)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError
from .base import Advance, Grid, Scheduler, SchedulerOutput
from .noise import signal_and_noise
from .prediction import Mix, Reading, reading

DDIMSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    eps: Mix
    eps_of_x0: bool  # ε is read from the clipped x₀ instead of the model output
    std: float
    mean: Mix  # of x₀ and ε


class DDIMSteps(Scheduler):
    """Base of the solvers that step x ← √ᾱ'·x₀ + √(1 − ᾱ' − s²)·ε + s·z with s² = η²·(1 − ᾱ')/(1 − ᾱ)·(1 − ᾱ/ᾱ')."""

    _anywhere = True

    def _steps(
        self, readings: list[Reading], here: torch.Tensor, there: torch.Tensor, eta: float = 0.0, clipped: bool = False
    ) -> list[_Row]:
        """The steps from ᾱ = `here` to `there`; `clipped` reads ε from x₀."""
        # Where ᾱ = 1 nothing is noise any more, so there is none to renew.
        variance = torch.where(here < 1, (1 - there) / (1 - here) * (1 - here / there), 0.0).clamp(min=0)
        std = eta * variance**0.5
        direction = 1 - there - std**2
        if eta < 0 or direction.min() < -1e-6:
            raise InputError(f"eta is {eta}; it must be within [0, 1]")
        eps = [one.eps for one in readings]
        if clipped:
            eps = [reading("sample", *level).eps for level in zip(*signal_and_noise(here), strict=True)]
        columns = (std.tolist(), (there**0.5).tolist(), (direction.clamp(min=0) ** 0.5).tolist())
        return [
            _Row(one.x0, of, clipped, s, Mix(on_x0, on_eps))
            for one, of, s, on_x0, on_eps in zip(readings, eps, *columns, strict=True)
        ]

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x0 = row.x0(sample, model_output)
        if self._limit is not None:
            x0 = self._limit(x0)
        eps = row.eps(sample, x0 if row.eps_of_x0 else model_output)
        previous = row.mean(x0, eps)
        if noise is not None and row.std:
            previous = previous + noise * row.std
        return Advance(previous, None, x0)


class DDIMScheduler(DDIMSteps):
    """Steps x ← √ᾱ'·x₀ + √(1 − ᾱ' − s²)·ε + s·z with s² = η²·(1 − ᾱ')/(1 − ᾱ)·(1 − ᾱ/ᾱ') (eq. 12 and 16).

    Run options: `eta` η in [0, 1]; `use_clipped_model_output` derives ε from the clipped x₀. The reference steps from t
    to t − num_train_timesteps // steps, also where the timetable goes elsewhere ("linspace", some of "trailing");
    `corrected`, and any custom `timesteps`, steps to the next entry of the timetable.
    """

    options: ClassVar = {"eta": 0.0, "use_clipped_model_output": False}
    _step_arguments: ClassVar = {"generator": None, "variance_noise": None, "return_dict": True}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, clip_sample: bool = True,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0, timestep_spacing: str = "leading", rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self._set_up()
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def _rows(self, grid: Grid, *, eta: float, use_clipped_model_output: bool) -> tuple[list[_Row], list[bool]]:
        ends = np.append(grid.times[1:], -1) if grid.exact else grid.times - len(self) // grid.steps
        here, there = self._cumulative(grid.times), self._cumulative(ends, self.final_alpha_cumprod)
        rows = self._steps(self._readings(grid), here, there, eta, use_clipped_model_output)
        return rows, [eta > 0] * len(rows)


class DDIMInverseScheduler(DDIMSteps):
    """DDIM's steps (η = 0) taken upwards, from a picture to the noise that it comes from (Mokady et al. 2022, app. A).

    A step goes from t − num_train_timesteps // steps to t, with what the network says when it is told t; `corrected`
    starts each step where the one before ended, also where "trailing" spacing has other distances.
    """

    _step_arguments: ClassVar = {"return_dict": True}
    choices: ClassVar = {**Scheduler.choices, "timestep_spacing": ("leading", "trailing")}
    custom = ()
    _compatibles = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, clip_sample: bool = True,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0, timestep_spacing: str = "leading", rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self._set_up()
        self.initial_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def _training_grid(self, corrected: bool) -> Grid:
        return _upwards(super()._training_grid(corrected))

    def _grid(self, steps: int, corrected: bool) -> Grid:
        return _upwards(super()._grid(steps, corrected))

    def _starts(self, grid: Grid) -> torch.Tensor:
        """ᾱ where each step starts."""
        stride = len(self) // grid.steps
        starts = np.append(-1, grid.times[:-1]) if grid.corrected else grid.times - stride
        return self._cumulative(starts, self.initial_alpha_cumprod)

    def _levels(self, grid: Grid) -> list[tuple[float, float]]:
        return list(zip(*signal_and_noise(self._starts(grid)), strict=True))

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        rows = self._steps(self._readings(grid), self._starts(grid), self._cumulative(grid.times))
        return rows, [False] * len(rows)


def _upwards(grid: Grid) -> Grid:
    return grid._replace(times=grid.times[::-1])
