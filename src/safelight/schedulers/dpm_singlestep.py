"""DPM-Solver and DPM-Solver++, singlestep (Lu et al. 2022, arXiv:2206.00927, alg. 1 and 2, and arXiv:2211.01095)."""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from .base import Advance, Grid, Plan
from .dpm import DPMScheduler, Exponential
from .plan import Row, Sum

logger = logging.getLogger(__name__)


class _State(NamedTuple):
    outputs: tuple[torch.Tensor, ...] = ()  # latest first
    start: torch.Tensor | None = None  # of the step under way


class DPMSolverSinglestepScheduler(DPMScheduler):
    """Steps of `solver_order` evaluations each, from the start of the step by the exact part and the slopes of x₀.

    The evaluations of a step are of order 1, 2, … up to its own, and the timetable has an entry for each.
    `algorithm_type` and `solver_type` as for the multistep solver. `lower_order_final` lowers the order at the end;
    where the number of evaluations or an end at σ = 0 needs that, it is done in any case, in this run only. The third
    order of "midpoint" presumes evaluations at thirds of the step in λ. "sde-dpmsolver++" has a sign wrong in its third
    order, as in the reference ("heun"); `corrected` repairs it.
    """

    choices: ClassVar = {**DPMScheduler.choices, "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = False, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0, final_sigmas_type: str | None = "zero",
        lambda_min_clipped: float = -math.inf, variance_type: str | None = None, use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ):  # fmt: skip
        self._set_up()

    def _orders(self, count: int) -> list[int]:
        """The order of each of `count` evaluations: 1, 2, … in each step; the last has what is left, or ends with 1."""
        settings, most = self._settings, self.config["solver_order"]
        ends = settings["final_sigmas_type"] == "zero"
        if not settings["lower_order_final"] and (ends or count % most):
            logger.warning("%d steps, ending at σ = %s: the order is lowered at the end", count, 0 if ends else "σ_min")
        elif not settings["lower_order_final"]:
            return [*range(1, most + 1)] * (count // most)
        whole, left = divmod(count, most)
        orders = [*range(1, most + 1)] * whole + [*range(1, left + 1)]
        return [*orders[:-1], 1] if ends or not left else orders

    def _rows(self, grid: Grid) -> tuple[list[Row], list[bool]]:
        track, count, kind = self._track(grid), len(grid.times), self._algorithm
        orders, sums = self._orders(count), []
        for order in range(1, self.config["solver_order"] + 1):
            part = Exponential(kind, track, np.maximum(np.arange(count) - order + 1, 0), grid.corrected)
            weights = self._weights(part, track[2], order).tolist()
            sums.append([Sum(*one) for one in zip(part.keep.tolist(), weights, part.spread.tolist(), strict=True)])
        rows = [Row(*one, tuple(of[i] for of in sums[: orders[i]])) for i, one in enumerate(self._readings(grid))]
        return rows, [kind.startswith("sde")] * count

    def _weights(self, part: Exponential, lam: np.ndarray, order: int) -> np.ndarray:
        """The weights of the last `order` outputs in steps of that order: (steps, order)."""
        on_m, on_slope, on_curve = part.weights
        midpoint = self.config["solver_type"] == "midpoint"
        if order == 1:
            return on_m[:, None]
        at = np.arange(len(part.h))
        places = [lam[np.maximum(at - k, 0)] - lam[np.maximum(at - order + 1, 0)] for k in range(order - 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            r0, *others = (place / part.h for place in places)
            if order == 2:
                newest = (on_m / 2 if midpoint else on_slope) / r0
                return np.stack([newest, on_m - newest], axis=1)
            (r1,) = others
            newest, middle = on_slope / r0, np.zeros_like(r0)
            if not midpoint:
                newest = (2 * on_curve - on_slope * r1) / (r0 - r1) / r0
                middle = (on_slope * r0 - 2 * on_curve) / (r0 - r1) / r1
            return np.stack([newest, middle, on_m - newest - middle], axis=1)

    def initial_state(self, plan: Plan) -> _State:
        return _State()

    def _advance(
        self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x0, output = self._read(row, model_output, sample)
        outputs = (output, *state.outputs)[: self._memory]
        order = min(len(outputs), len(row.steps))
        start = sample if order == 1 else state.start
        previous = row.steps[order - 1](start, outputs, noise).to(output.dtype)
        return Advance(previous, _State(outputs, start), x0)
