"""DPM-Solver++ (SDE), second order, one step at a time: k-diffusion's sampler (Lu et al. 2022, arXiv:2211.01095)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..brownian import check_noise_seed, tree_of
from ..configuration import register_to_config
from ..errors import InputError
from .base import Advance, Grid, Plan, SchedulerOutput
from .plan import Sum
from .prediction import Mix
from .sigma import TwoEvaluationScheduler

DPMSolverSDESchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    step: Sum  # of the step's first sample, with x₀ and perhaps the noise of its first evaluation
    span: tuple[float, float]  # the σ between which the noise is a Brownian increment
    second: bool


class _State(NamedTuple):
    start: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class DPMSolverSDEScheduler(TwoEvaluationScheduler):
    """Steps x ← (σ↓/σ)·x + (1 − σ↓/σ)·x₀ + σ↑·z with σ↓² + σ↑² = σ'², and x₀ predicted halfway, at σₘ = √(σ·σ').

    A first evaluation takes such a step to σₘ, a second one the whole step with x₀ from there. The z are increments of
    one Brownian motion over [σₘ, σ] and [σ', σ], divided by √ of their length. `noise_sampler_seed` is the motion's
    seed, or a list with one for each image: `generator` then says nothing, and the noise of a step depends on its σ
    alone. Without one the z have the same law, from `generator`: the second z is √s·(the first) + √(1 − s)·(fresh
    numbers) with s = (σ − σₘ)/(σ − σ'). (The reference takes a seed from the global generator then.) A run cannot start
    at a second evaluation. Run option: `s_noise`, a factor of the noise.
    """

    options: ClassVar = {"s_noise": 1.0}
    _precision = np.float64

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Any = None, prediction_type: str = "epsilon",
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, noise_sampler_seed: int | Sequence[int] | None = None,
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self._set_up()

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.config["noise_sampler_seed"] is not None:
            check_noise_seed("noise_sampler_seed", self.config["noise_sampler_seed"])

    def _second(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.array([_halfway(a, b) for a, b in zip(start.tolist(), end.tolist(), strict=True)], np.float32)

    def _rows(self, grid: Grid, **options: float) -> tuple[list[_Row], list[bool]]:
        sigmas, rows = grid.sigmas.tolist(), []
        for i, evaluated in enumerate(self._evaluated(grid).tolist()):
            second = i % 2
            start, end = sigmas[i - second], sigmas[i + 1 - second]
            middle, start, end = _halfway(start, end), _again(start), _again(end)
            shared = second and start > end and self.config["noise_sampler_seed"] is None
            share = (start - middle) / (start - end) if shared else 0.0
            end = end if second else middle
            down = end**2 / start
            keep, up = down / start, (end**2 - down**2) ** 0.5 * options["s_noise"]
            weights = (1 - keep, up * share**0.5) if shared else (1 - keep,)
            step = Sum(keep, weights, up * (1 - share) ** 0.5)
            rows.append(_Row(self._reading(evaluated).x0, step, (start, end), bool(second)))
        return rows, [row.step.on_noise != 0 for row in rows]

    def initial_state(self, plan: Plan) -> _State:
        return _State()

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """The `noise` of evaluation `i`: by `noise_sampler_seed`, else fresh numbers from `generator`."""
        seed, sigmas = self.config["noise_sampler_seed"], plan.grid.sigmas
        if seed is None or not plan.needs_noise[i]:
            return super().draw_noise(plan, i, sample, generator, dtype)
        seed = seed if isinstance(seed, int) else tuple(seed)
        low, high = float(sigmas[sigmas > 0].min()), float(sigmas.max())
        return tree_of(plan, low, high, sample, seed, dtype or sample.dtype).normalised(*plan.rows[i].span)

    def _advance(
        self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: _State, noise: torch.Tensor | None
    ) -> Advance:
        start, x0 = state.start if row.second else sample, row.x0(sample, model_output)
        if start is None:
            raise InputError("a run cannot start inside a step, at its second evaluation; start at 0, 2, 4, …")
        outputs = (x0,) if state.noise is None else (x0, state.noise)
        previous = row.step(start, outputs, noise).to(model_output.dtype)
        return Advance(previous, _State() if row.second or not row.step.on_x else _State(sample, noise), x0)


# In float32, one number at a time, as the reference: a Brownian motion shows the last digit of its times.


def _minus_log(sigma: float) -> torch.Tensor:
    return torch.tensor(sigma, dtype=torch.float32).log().neg()


def _again(sigma: float) -> float:
    return float(_minus_log(sigma).neg().exp())


def _halfway(start: float, end: float) -> float:
    t = _minus_log(start)
    return float((t + (_minus_log(end) - t) * 0.5).neg().exp())
