"""DPM-Solver++ (SDE), multistep, on the noise levels of Stable Audio (arXiv:2211.01095; arXiv:2404.10301)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch

from ..configuration import register_to_config
from .base import Grid, Plan
from .brownian import tree_of
from .dpm import FOREIGN
from .dpm_multistep import MultistepScheduler
from .edm import EDMScheduler
from .plan import Row


class CosineDPMSolverMultistepScheduler(EDMScheduler, MultistepScheduler):  # type: ignore[misc]  # has no `mu`
    """x ← (σ'/σ)·e^−h·x + (1 − e^−2h)·D + σ'·√(1 − e^−2h)·z with h = log(σ/σ'), D extrapolated from the last x₀.

    The network is told 2/π·atan(σ). Options as of `DPMSolverMultistepScheduler`, for orders 1 and 2. The z are
    increments of a Brownian motion over [σ', σ], divided by √(σ − σ'). Its seed is the one that `generator` began with,
    so how far that has gone makes no difference, and runs of more steps follow the same noise; each generator of a list
    has a motion of its own. Without a generator, z are numbers of the same law.
    """

    choices: ClassVar = {**MultistepScheduler.choices, **EDMScheduler.choices, "solver_order": (1, 2)}
    foreign: ClassVar = {"solver_type": FOREIGN["solver_type"]}

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.3,
        sigma_max: float = 500,
        sigma_data: float = 1.0,
        sigma_schedule: str = "exponential",
        num_train_timesteps: int = 1000,
        solver_order: int = 2,
        prediction_type: str = "v_prediction",
        rho: float = 7.0,
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str | None = "zero",
    ):
        self._set_up()

    @property
    def _algorithm(self) -> str:
        return "sde-dpmsolver++"

    def _told(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma.atan() / math.pi * 2

    def _rows(self, grid: Grid) -> tuple[list[Row], list[bool]]:
        rows, _ = super()._rows(grid)
        return rows, [row.steps[0].on_noise > 0 for row in rows]

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """The `noise` of evaluation `i`: of the Brownian motion that `generator`, or each of a list, began with."""
        if generator is None or not plan.needs_noise[i]:
            return super().draw_noise(plan, i, sample, generator, dtype)
        several = isinstance(generator, (list, tuple))
        seed = tuple(one.initial_seed() for one in generator) if several else generator.initial_seed()
        ends = float(self.config["sigma_min"]), float(self.config["sigma_max"])
        tree = tree_of(plan, *ends, sample.shape, seed, dtype or sample.dtype, sample.device)
        assert plan.sigmas is not None
        return tree.normalised(plan.sigmas[i], plan.sigmas[i + 1])
