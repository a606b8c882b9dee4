"""Euler's method in σ (Karras et al. 2022, arXiv:2206.00364, algorithm 2 without the second order)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch

from ..configuration import register_to_config
from ..errors import InputError
from .base import Advance, Grid, SchedulerOutput
from .prediction import Mix
from .sigma import SigmaScheduler
from .timetable import TimetableScheduler

EulerDiscreteSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    sigma: float
    change: float  # of σ
    churn: float  # how much of `s_noise` times the noise is added first
    s_noise: float


class ChurnedEuler(TimetableScheduler):
    """Base of Euler's method with churn. `_advance` takes x₀ for known where the state is one."""

    options: ClassVar = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0}

    def _rows(
        self, grid: Grid, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        if s_churn < 0:
            raise InputError(f"s_churn is {s_churn}; it must not be negative")
        sigmas = torch.from_numpy(grid.sigmas)
        sigma, following = sigmas[: len(grid.times)], sigmas[1 : len(grid.times) + 1]
        most = min(s_churn / (len(sigmas) - 1), 2**0.5 - 1)
        churned = (s_tmin <= sigma) & (sigma <= s_tmax) & (most > 0)
        raised = torch.where(churned, sigma * (most + 1), sigma)
        readings = [self._reading(value).x0 for value in (sigma if self._reads_at_start(grid) else raised).tolist()]
        columns = (raised.tolist(), (following - raised).tolist(), ((raised**2 - sigma**2) ** 0.5).tolist())
        rows = [_Row(*parts, s_noise) for parts in zip(readings, *columns, strict=True)]
        return rows, churned.tolist()

    def _reads_at_start(self, grid: Grid) -> bool:
        """Whether x₀ is read as though x were at σ still, when churn has taken it to σ̂."""
        return False

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x = sample.float()
        if noise is not None and row.churn:
            x = x + noise * row.s_noise * row.churn
        x0 = row.x0(x, model_output) if state is None else state
        previous = (x - x0).div_(row.sigma).mul_(row.change).add_(x)
        return Advance(previous.to(model_output.dtype), None, x0)


class EulerDiscreteScheduler(ChurnedEuler, SigmaScheduler):
    """Steps x ← x + (σ' − σ)·(x − x₀)/σ, after raising σ to σ̂ = (1 + γ)·σ by fresh noise where churn is on.

    Run options, as in the paper: `s_churn` spreads over the steps whose σ is within [`s_tmin`, `s_tmax`], with noise of
    standard deviation `s_noise`. With churn the reference reads v-predictions at σ although x is at σ̂; `corrected`
    reads them at σ̂.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ):
        self._set_up()

    def _reads_at_start(self, grid: Grid) -> bool:
        return self.config["prediction_type"] == "v_prediction" and not grid.corrected
