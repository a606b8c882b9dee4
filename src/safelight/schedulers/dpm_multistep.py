"""DPM-Solver and DPM-Solver++, multistep (Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch

from ..configuration import register_to_config
from .base import Grid, Plan
from .dpm import DPMScheduler, Exponential, multistep_weights
from .plan import Row, Sum


class MultistepScheduler(DPMScheduler):
    """Base of the solvers that extrapolate from the last outputs; a family says how they are read, on which grid."""

    def _rows(self, grid: Grid) -> tuple[list[Row], list[bool]]:
        settings, track, count = self._settings, self._track(grid), len(grid.times)
        part = Exponential(self._algorithm, track, np.arange(count), grid.corrected)
        orders = multistep_weights(part, track[2], settings["solver_type"], grid.corrected)
        keep, spread = part.keep.tolist(), part.spread.tolist()
        weights = [order.tolist() for order in orders]
        rows = []
        for i, one in enumerate(self._readings(grid)):
            most = self._order_at(i, count)
            rows.append(Row(one.x0, one.eps, tuple(Sum(keep[i], of[i], spread[i]) for of in weights[:most])))
        return rows, [self._algorithm.startswith("sde")] * count


class DPMSolverMultistepScheduler(MultistepScheduler):
    """Steps x ← (σ'/σ)·x − α'·(e^−h − 1)·D with h = λ' − λ, where D extrapolates x₀ from the last `solver_order` ones.

    `algorithm_type`: "dpmsolver++" combines x₀ as above, "dpmsolver" ε, and the "sde-" twins add the noise of the
    reverse SDE. `solver_type` is the form of the second order ("midpoint" or "heun"). `lower_order_final` lowers the
    order at the end of runs of fewer than 15 steps, `euler_at_final` makes the last step first-order in all.
    `use_lu_lambdas` spaces λ evenly. In the reference the third order takes half of the second difference that it
    should (and "sde-dpmsolver++" gives it the wrong sign), which makes it second-order; `corrected` repairs it.
    """

    _step_arguments: ClassVar = {"generator": None, "variance_noise": None, "return_dict": True}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_lu_lambdas: bool | None = False, use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0,
        final_sigmas_type: str | None = "zero", lambda_min_clipped: float = -math.inf, variance_type: str | None = None,
        timestep_spacing: str = "linspace", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
    ):  # fmt: skip
        self._set_up()

    def _rounds(self) -> bool:
        settings = self._settings
        evenly = settings["use_karras_sigmas"] or settings.get("use_lu_lambdas")
        return bool(evenly) and settings["beta_schedule"] != "squaredcos_cap_v2"

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """As of every solver, but always float32, as in the reference."""
        return super().draw_noise(plan, i, sample, generator, torch.float32)
