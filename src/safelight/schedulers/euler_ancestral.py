"""Ancestral sampling with Euler steps in σ: down past the next noise level, then up to it by fresh noise.

From k-diffusion; what DDPM (Ho et al. 2020, arXiv:2006.11239) does in its own variables.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch

from ..configuration import register_to_config
from .base import Advance, Grid, SchedulerOutput
from .prediction import Mix
from .sigma import SigmaScheduler, ancestral

EulerAncestralDiscreteSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    sigma: float
    change: float  # of σ, before the noise
    up: float  # the standard deviation of the noise


class EulerAncestralDiscreteScheduler(SigmaScheduler):
    """Steps x ← x + (σ_down − σ)·(x − x₀)/σ + σ_up·z with σ_down = σ'²/σ and σ_up² = σ'² − σ_down².

    That is DDIM with η = 1 (Song et al. 2021, arXiv:2010.02502, eq. 16) written in σ, but that the noise-free part is
    an Euler step. Noise is drawn at every step, also at the last, where it has no weight.
    """

    custom: ClassVar = ()

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ):
        self._set_up()

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        sigmas = torch.from_numpy(grid.sigmas)
        down, up = ancestral(sigmas[:-1], sigmas[1:])
        columns = (sigmas[:-1].tolist(), (down - sigmas[:-1]).tolist(), up.tolist())
        rows = [_Row(self._reading(sigma).x0, sigma, *rest) for sigma, *rest in zip(*columns, strict=True)]
        return rows, [True] * len(rows)

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x = sample.float()
        x0 = row.x0(x, model_output)
        previous = self._moved(x, row.change, x, x0, model_output, row.sigma)
        if noise is not None and row.up:
            previous = previous.add_(noise, alpha=row.up)
        return Advance(previous.to(model_output.dtype), None, x0)
