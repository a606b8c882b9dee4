"""Consistency sampling in σ (Song et al. 2023, arXiv:2303.01469, algorithm 1)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import ConfigError, InputError, check_positive
from .base import Advance, Grid, Plan, SchedulerOutput
from .prediction import Mix, limiter
from .spacing import karras
from .timetable import TimetableScheduler

CMStochasticIterativeSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    noise: float  # how much of fresh noise is added


class CMStochasticIterativeScheduler(TimetableScheduler):
    """Steps x ← x₀ + √(σ'² − σ_min²)·z with fresh noise z of standard deviation `s_noise`.

    x₀ = c_skip·x + c_out·y is the sample itself at σ_min (app. C); with `clip_denoised` it is clipped to [−1, 1]. The
    network sees x/√(σ² + σ_d²), σ_d = `sigma_data`, and is told 250·ln σ, which `timesteps` shows (float64). The run's
    σ are places in a Karras grid of `num_train_timesteps` from `sigma_max` to `sigma_min` with exponent `rho`: evenly
    spaced from the first, or custom `timesteps`, counted from `sigma_max` and given falling. A run ends at σ_min; one
    of a single step adds no noise.
    """

    _compatibles = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
        s_noise: float = 1.0, rho: float = 7.0, clip_denoised: bool = True,
    ):  # fmt: skip
        self._set_up()

    def _check_settings(self) -> None:
        super()._check_settings()
        config = self.config
        if not 0 < config["sigma_min"] < config["sigma_max"]:
            raise ConfigError(
                f"sigma_min={config['sigma_min']}, sigma_max={config['sigma_max']}: 0 < sigma_min < sigma_max is needed"
            )
        check_positive("sigma_data", config["sigma_data"])
        check_positive("rho", config["rho"])
        self._limit = limiter({"clip_sample": config["clip_denoised"], "clip_sample_range": 1.0})

    def _set_up(self) -> None:
        self._check_settings()

    def sigma_to_t(self, sigmas: float | np.ndarray) -> np.ndarray:
        """What the network is told of σ: 250·ln σ."""
        return 250.0 * np.log(np.asarray(sigmas, dtype=np.float64) + 1e-44)

    def get_scalings_for_boundary_condition(self, sigma: Any) -> tuple[Any, Any]:
        """c_skip and c_out at `sigma`, a number or a tensor: 1 and 0 at σ_min."""
        above, spread = sigma - self.config["sigma_min"], self.config["sigma_data"]
        return spread**2 / (above**2 + spread**2), above * spread / (sigma**2 + spread**2) ** 0.5

    def _training_grid(self, corrected: bool) -> Grid:
        return self._at(np.arange(len(self)), corrected)

    def _grid(self, steps: int, corrected: bool) -> Grid:
        if steps > len(self):
            raise InputError(f"num_inference_steps is {steps}; at most num_train_timesteps={len(self)} are possible")
        return self._at(np.arange(steps) * (len(self) // steps), corrected)

    def _custom_grid(self, corrected: bool, timesteps: np.ndarray) -> Grid:
        return self._at(super()._custom_grid(corrected, timesteps).times[::-1], corrected)

    def _at(self, places: np.ndarray, corrected: bool) -> Grid:
        low, high = self.config["sigma_min"], self.config["sigma_max"]
        sigmas = karras(low, high, len(self), self.config["rho"])[places]
        told = np.append(sigmas, low).astype(np.float32)
        return Grid(self.sigma_to_t(sigmas), len(places), told, exact=True, corrected=corrected)

    def _assemble(self, grid: Grid, options: dict[str, Any], device: Any = None) -> Plan:
        if str(device).startswith("mps"):  # has no float64
            grid = grid._replace(times=grid.times.astype(np.float32))
        return super()._assemble(grid, options, device)

    def _first_sigma(self, grid: Grid) -> float:
        return self.config["sigma_max"]

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        low, s_noise = self.config["sigma_min"], self.config["s_noise"]
        rows = []
        for sigma, following in pairwise(grid.sigmas.tolist()):
            added = s_noise * max(following**2 - low**2, 0.0) ** 0.5
            rows.append(_Row(Mix(*self.get_scalings_for_boundary_condition(sigma)), added))
        return rows, [len(rows) > 1] * len(rows)

    def scale_input(self, plan: Plan, i: int, sample: torch.Tensor) -> torch.Tensor:
        """x/√(σ² + σ_d²) at evaluation `i`."""
        self._row(plan, i)
        return sample / (plan.levels[i][1] ** 2 + self.config["sigma_data"] ** 2) ** 0.5

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        read = row.x0(sample, model_output)
        x0 = read if self._limit is None else self._limit(read)
        return Advance(x0 if noise is None else torch.add(x0, noise, alpha=row.noise), None, x0)
