"""The midpoint method in log σ, DPM-Solver-2 of k-diffusion (Karras et al. 2022, arXiv:2206.00364, algorithm 2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from .base import Advance, Grid, SchedulerOutput
from .prediction import Mix
from .sigma import TwoEvaluationScheduler, ancestral

KDPM2DiscreteSchedulerOutput = KDPM2AncestralDiscreteSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    sigma: float
    change: float  # of σ in the whole step
    alone: float  # the change from this evaluation's σ to the next one's
    up: float  # the standard deviation of the noise
    second: bool


class KDPM2DiscreteScheduler(TwoEvaluationScheduler):
    """Steps x ← x + (σ' − σ)·d with the slope d = (x̂ − x₀)/σ̂ at σ̂ = √(σ·σ'), where an Euler step from x led.

    The last step, to σ' = 0, is Euler's. A run that begins with a second evaluation goes on from there with an Euler
    step. With Karras' σ the timesteps of first evaluations are rounded. `add_noise` at the timestep of a second
    evaluation noises as for the end of its step, where `sigmas` stands, as in the reference; `noised` is right there.
    """

    _noisy = False

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._set_up()

    def _end(self, start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The σ that steps end at, and the standard deviation of the noise that they add then."""
        return end, torch.zeros_like(end)

    def _second(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        # In the reference's order: √(σ·σ'), but for rounding.
        goal = self._end(torch.from_numpy(start), torch.from_numpy(end))[0]
        return torch.from_numpy(start).log().lerp(goal.log(), 0.5).exp().numpy()

    def _told(self, times: np.ndarray, sigmas: np.ndarray, steps: int, corrected: bool, exact: bool = False) -> Grid:
        times = np.round(times) if self._settings["use_karras_sigmas"] else times
        grid = super()._told(times, sigmas, steps, corrected, exact)
        assert grid.sigmas is not None
        return grid._replace(sigmas=np.append(grid.sigmas, np.zeros(2, np.float32)))

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        here = torch.from_numpy(self._evaluated(grid))
        start, middle = here[::2], torch.cat([here[1::2], here.new_zeros(1)])
        end, up = self._end(start, torch.from_numpy(grid.sigmas[1 : len(here) + 1 : 2]))
        none = torch.zeros_like(start)
        pairs = ((start, middle), (none, end - start), (middle - start, end - middle), (none, up))
        columns = [torch.stack(pair, 1).flatten().tolist() for pair in pairs]
        second = [i % 2 == 1 for i in range(len(here))]
        rows = [_Row(self._reading(parts[0]).x0, *parts) for parts in zip(*columns, second, strict=False)]
        return rows, [flag and self._noisy for flag in second]

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x0 = row.x0(sample, model_output)
        start, change = (state, row.change) if row.second and state is not None else (sample, row.alone)
        previous = self._moved(start, change, sample, x0, model_output, row.sigma)
        if not row.second:
            return Advance(previous, sample, x0)
        if noise is not None and row.up:
            previous = previous.add_(noise, alpha=row.up)
        return Advance(previous, None, x0)


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """As `KDPM2DiscreteScheduler`, but down to σ_down = σ'²/σ and up to σ' by fresh noise.

    The second evaluation is then at √(σ·σ_down) = σ'. Where σ' is hundreds of times below σ, as in the first of few
    steps with the cosine schedule, the reference misses it by rounding, or finds no number at all (then ours is σ');
    `corrected` takes σ' everywhere.
    """

    _noisy = True

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._set_up()

    def _end(self, start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ancestral(start, end)

    def _second(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        found = super()._second(start, end)
        return np.where(found > 0, found, end)

    def _evaluated(self, grid: Grid) -> np.ndarray:
        assert grid.sigmas is not None
        return grid.sigmas[: len(grid.times)] if grid.corrected else super()._evaluated(grid)
