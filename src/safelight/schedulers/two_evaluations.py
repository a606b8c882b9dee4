"""Heun's and the midpoint method in σ (Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from ..configuration import register_to_config
from .base import Grid, SchedulerOutput
from .sigma import SlopeRow, TwoEvaluationScheduler, ancestral

HeunDiscreteSchedulerOutput = SchedulerOutput
KDPM2DiscreteSchedulerOutput = KDPM2AncestralDiscreteSchedulerOutput = SchedulerOutput


class SecondOrder(TwoEvaluationScheduler):
    """Base of the solvers that go a whole step along the second slope, or along the mean of both."""

    _noisy = False  # whether steps go further down than to their end, and up to it by noise

    def _end(self, start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The σ that steps from `start` go to, and the standard deviation of the noise that then leads to `end`."""
        return ancestral(start, end) if self._noisy else (end, torch.zeros_like(end))

    def _rows(self, grid: Grid) -> tuple[list[SlopeRow], list[bool]]:
        here = torch.from_numpy(self._evaluated(grid))
        start, second = here[::2], here[1::2]
        end, up = self._end(start, torch.from_numpy(grid.sigmas[1 : len(here) + 1 : 2]))
        whole = (end - start).tolist()
        alone = torch.stack([second - start[:-1], end[:-1] - second], 1).flatten().tolist() + whole[-1:]
        reads = [self._reading(sigma).x0 for sigma in here.tolist()]
        rows = [SlopeRow(*parts) for parts in zip(reads, here.tolist(), alone, strict=True)]
        for k, spread in enumerate(up[:-1].tolist()):
            rest = whole[k] / 2 if self._mean else whole[k]
            rows[2 * k + 1] = rows[2 * k + 1]._replace(up=spread, rest=rest)
        return rows, [self._noisy and i % 2 == 1 for i in range(len(rows))]


class HeunDiscreteScheduler(SecondOrder):
    """Steps x ← x + (σ' − σ)·(d + d')/2: d = (x − x₀)/σ is the slope at x, d' that at the end of the Euler step with d.

    The last step, to σ' = 0, is Euler's. A run that begins with a second evaluation stands still there: its sample
    is at σ' already.
    """

    custom: ClassVar = ("timesteps",)
    _mean = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Any = None, prediction_type: str = "epsilon",
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, clip_sample: bool | None = False, clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self._set_up()

    def _told(self, times: np.ndarray, sigmas: np.ndarray, steps: int, corrected: bool, exact: bool = False) -> Grid:
        grid = super()._told(times, sigmas, steps, corrected, exact)
        grid.times[1::2] = grid.times[2::2]
        return grid


class KDPM2DiscreteScheduler(SecondOrder):
    """DPM-Solver-2 of k-diffusion: x ← x + (σ' − σ)·d, d = (x̂ − x₀)/σ̂ at σ̂ = √(σ·σ'), where an Euler step from x led.

    The last step, to σ' = 0, is Euler's. A run that begins with a second evaluation goes on from there with an Euler
    step. With Karras' σ the timesteps of first evaluations are rounded. `add_noise` at the timestep of a second
    evaluation noises as for the end of its step, where `sigmas` stands, as in the reference; `noised` is right there.
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Any = None, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        prediction_type: str = "epsilon", timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self._set_up()

    def _second(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        # In the reference's order: √(σ·σ'), but for rounding.
        goal = self._end(torch.from_numpy(start), torch.from_numpy(end))[0]
        found = torch.from_numpy(start).log().lerp(goal.log(), 0.5).exp().numpy()
        return np.where(found > 0, found, end)

    def _told(self, times: np.ndarray, sigmas: np.ndarray, steps: int, corrected: bool, exact: bool = False) -> Grid:
        times = np.round(times) if self._settings["use_karras_sigmas"] else times
        grid = super()._told(times, sigmas, steps, corrected, exact)
        return grid._replace(sigmas=np.append(grid.sigmas, np.zeros(2, np.float32)))


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """As `KDPM2DiscreteScheduler`, but down to σ_down = σ'²/σ and up to σ' by fresh noise.

    The second evaluation is then at √(σ·σ_down) = σ'. Where σ' is hundreds of times below σ, as in the first of few
    steps with the cosine schedule, the reference misses it by rounding, or finds no number at all (then ours is σ').
    """

    _noisy = True
