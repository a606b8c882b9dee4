"""Fourth-order PNDM on a continuous schedule, without Runge-Kutta steps (Liu et al. 2022, arXiv:2202.09778)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import ConfigError
from .base import Advance, Grid, Plan
from .pndm import ADAMS_BASHFORTH
from .prediction import Mix, reading
from .timetable import TimetableScheduler


class _Row(NamedTuple):
    x0: Mix
    alpha: float
    sigma: float
    on_x: float  # in the next x; where α = 0, of x₀ instead
    on_eps: float


class _State(NamedTuple):
    history: tuple[torch.Tensor, ...] = ()  # ε of earlier evaluations, latest first


class IPNDMScheduler(TimetableScheduler):
    """Steps x ← α'·(x − σ·ε̄)/α + σ'·ε̄ with the ε̄ that Adams-Bashforth makes of the last four ε (eq. 12).

    x = α·x₀ + σ·ε with σ = sin²(π·s/2) at evenly spaced s from 1 to 0, α = √(1 − σ²); the network is told the angle
    (2/π)·arctan(σ/α), in (0, 1], and predicts v = α·ε − σ·x₀. `trained_betas` are the σ instead, of every evaluation
    and of the end: then the number of steps is theirs, whatever number is asked for.
    The first steps use as many ε as there are. The reference forgets what the network says where α = 0, at the first
    evaluation: x ← σ'·x. `corrected` steps to α'·x₀ + σ'·x.
    """

    custom: ClassVar[tuple[str, ...]] = ()
    _compatibles = ()

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, trained_betas: Any = None):
        self._check_settings()

    def _check_settings(self) -> None:
        super()._check_settings()
        trained = self.config["trained_betas"]
        given = np.array([0, 1] if trained is None else trained, dtype=np.float64)
        if given.ndim != 1 or len(given) < 2 or not ((given >= 0) & (given <= 1)).all():
            raise ConfigError("trained_betas must be at least two numbers in [0, 1]: σ at every evaluation and the end")

    @property
    def betas(self) -> torch.Tensor:  # type: ignore[override]
        """The σ of the run: as `sigmas`."""
        return self.sigmas

    @property
    def alphas(self) -> torch.Tensor:  # type: ignore[override]
        """√(1 − σ²) of each of `sigmas`."""
        return self._alpha_sigma(self.sigmas)[0]

    def _training_grid(self, corrected: bool) -> Grid:
        return self._grid(len(self), corrected)

    def _grid(self, steps: int, corrected: bool) -> Grid:
        trained = self.config["trained_betas"]
        if trained is None:
            sigma = torch.sin(torch.linspace(1, 0, steps + 1) * math.pi / 2) ** 2
        else:
            sigma = torch.as_tensor(np.array(trained, dtype=np.float64)).float()
        alpha, _ = self._alpha_sigma(sigma)
        times = torch.atan2(sigma, alpha)[:-1] / math.pi * 2
        return Grid(times.numpy(), steps, sigma.numpy(), corrected=corrected)

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        return (1 - sigma**2) ** 0.5, sigma

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        alphas, sigmas = (column.tolist() for column in self._alpha_sigma(torch.from_numpy(grid.sigmas)))
        rows = []
        for i in range(len(grid.times)):
            alpha, sigma, next_alpha, next_sigma = alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]
            on_x = next_alpha / alpha if alpha else 0.0
            on_eps = next_sigma - on_x * sigma
            if not alpha and grid.corrected:
                on_x = next_alpha
            rows.append(_Row(reading("v_prediction", alpha, sigma).x0, alpha, sigma, on_x, on_eps))
        return rows, [False] * len(rows)

    def initial_state(self, plan: Plan) -> _State:
        return _State()

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: _State, noise: torch.Tensor | None
    ) -> Advance:
        x0 = torch.add(sample * row.alpha, model_output, alpha=-row.sigma)
        eps = torch.add(sample * row.sigma, model_output, alpha=row.alpha)
        history = (eps, *state.history[:3])
        previous = (sample if row.alpha else x0) * row.on_x
        for weight, one in zip(ADAMS_BASHFORTH[len(history) - 1], history, strict=True):
            previous.add_(one, alpha=row.on_eps * weight)
        return Advance(previous, _State(history), x0)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, corrected: bool = False
    ) -> torch.Tensor:
        """The training target α·ε − σ·x₀ at `timesteps` (B,) of the run's timetable; as for `add_noise`."""
        return self.add_noise(noise, -sample, timesteps, corrected)
