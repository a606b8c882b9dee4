"""DPM-Solver and DPM-Solver++, multistep (Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import ConfigError
from .base import Grid, Plan
from .dpm import DPMScheduler, Exponential, multistep_weights
from .plan import Row, Sum
from .spacing import chosen_grid, ending_above_zero, spaced


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


class DPMSolverMultistepInverseScheduler(MultistepScheduler):
    """`DPMSolverMultistepScheduler` upwards, from a picture to the noise that it comes from.

    The algorithms that add noise cannot go there. As in the reference, flow sigmas fall here as well, and timesteps
    that come twice are left out, though not their σ, so that the network is told wrong ones from there on and the run
    ends before the noise does; `corrected` leaves those σ out as well.
    """

    custom = ()
    timetable_options: ClassVar = {}
    _repeats_last = True
    _step_arguments: ClassVar = {"generator": None, "variance_noise": None, "return_dict": True}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0, lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None, timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self._set_up()

    def _check_settings(self) -> None:
        super()._check_settings()
        if self._algorithm.startswith("sde") and not self._flow:
            raise ConfigError(f"algorithm_type={self._algorithm!r} cannot take noise away; use it without sde-")

    @property
    def noisiest_timestep(self) -> int:
        """The last training timestep that a run can reach."""
        return len(self) - 1 - self._clipped()

    def _training_grid(self, corrected: bool) -> Grid:
        sigmas = self._training_sigmas()
        return Grid(np.arange(len(self), dtype=np.float32), len(self), np.append(sigmas, sigmas[-1]), False, corrected)

    def _grid(self, steps: int, corrected: bool, mu: float | None = None) -> Grid:
        settings, train = self._settings, len(self)
        last, make = self.noisiest_timestep + 1, chosen_grid(settings)
        spacing, offset = settings["timestep_spacing"], settings["steps_offset"]
        if spacing == "trailing":
            times = ending_above_zero(spacing, train, last, steps, offset, corrected)[::-1]
        else:
            times = spaced(spacing, last, steps + 1, offset).round()[:0:-1]
        grid = self._sigmas_at(times, steps, corrected, None)
        assert grid.sigmas is not None
        times, sigmas, end = grid.times, grid.sigmas[:-1], grid.sigmas[-1]
        if make is not None:
            times, sigmas, end = times[::-1], sigmas[::-1], sigmas[0]
        elif not self._flow:
            end = self._training_sigmas()[last - 1]
        if make is None or self._rounds():
            first = np.sort(np.unique(times, return_index=True)[1])
            times, sigmas = times[first], sigmas[first] if corrected else sigmas
        return Grid(times, len(times), np.append(sigmas, end)[: len(times) + 1], corrected=corrected)
