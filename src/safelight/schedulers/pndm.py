"""PNDM: linear multistep sampling, begun by Runge-Kutta or improved Euler (Liu et al. 2022, arXiv:2202.09778)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError
from .base import Advance, Grid, Plan, Scheduler
from .prediction import Mix

_AS_IT_IS = Mix(0.0, 1.0)
_STAGE_WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
# The weights of one to four slopes at even steps, latest first.
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class _Move(NamedTuple):
    """x' = on_x·x − change·ε/over (eq. 9)."""

    eps: Mix
    on_x: float
    change: float
    over: float

    def __call__(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        eps = self.eps(x, output)
        if self.on_x < 2:
            return torch.add(x * self.on_x, eps, alpha=-self.change / self.over)
        # Where ᾱ is small both terms are large and their difference is not, so each operation rounds once.
        return x * self.on_x - (eps * self.change).div_(self.over)


class _Row(NamedTuple):
    x0: Mix
    slope: Mix  # of the output on its arrival: itself, or ε
    move: _Move
    again: _Move | None  # the previous step, taken again with a second look at its slope
    stage: int | None  # of a Runge-Kutta step


class _State(NamedTuple):
    taken: int = 0
    history: tuple[torch.Tensor, ...] = ()  # outputs of earlier steps, latest first
    start: torch.Tensor | None = None  # where the step under way began
    slope: Any = 0.0  # the weighted sum of its Runge-Kutta stages


class PNDMScheduler(Scheduler):
    """Steps with the slope that Adams-Bashforth makes of the last four model outputs (eq. 12), moved by eq. 9.

    The first three steps are Runge-Kutta's with four evaluations each, or, with `skip_prk_steps`, the first is Euler's,
    improved by an evaluation at its end. The reference steps from t to t − num_train_timesteps // steps, also where the
    timetable goes elsewhere ("linspace", "trailing"), and improves the first step of a run that starts inside the
    timetable without evaluating twice, so that x stays one step behind. It combines outputs as they are, though
    v-predictions at different timesteps are not of one kind. `corrected` steps along the timetable and combines ε.
    """

    custom = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False, prediction_type: str = "epsilon", timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ):  # fmt: skip
        self._set_up()
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def _training_grid(self, corrected: bool) -> Grid:
        return self._with_first_steps(super()._training_grid(corrected))

    def _grid(self, steps: int, corrected: bool) -> Grid:
        return self._with_first_steps(super()._grid(steps, corrected))

    def _with_first_steps(self, grid: Grid) -> Grid:
        """The timetable with the extra evaluations that begin it."""
        times = grid.times
        if self.config["skip_prk_steps"]:
            return grid._replace(times=np.concatenate([times[:2], times[1:]]))
        if len(times) < 4:
            raise InputError(f"num_inference_steps is {len(times)}; Runge-Kutta needs 4, or set skip_prk_steps=True")
        first, last = times[:3], times[1:4]
        middle = (first + last) // 2 if grid.corrected else last + len(self) // grid.steps // 2
        stages = np.stack([first, middle, middle, last], axis=1).reshape(-1)
        return grid._replace(times=np.concatenate([stages, times[3:]]))

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        times, stride, index = grid.times, len(self) // grid.steps, np.arange(len(grid.times))
        skip = self.config["skip_prk_steps"]
        staged = (index < 12) & (not skip)
        # Where the step of each evaluation starts and ends. A Runge-Kutta stage starts where its step does, and the
        # second and fourth are evaluated where they end.
        starts = np.where(staged, times[index - index % 4], times)
        if grid.corrected:
            before, ends = np.append(times[:1], times[:-1]), np.append(times[1:], -1)
        else:
            before = np.minimum(times + stride, len(self) - 1)
            ends = times - np.where(staged, stride // 2, stride)
        moves = self._moves(grid, starts, np.where(staged & (index % 2 == 1), times, ends))
        repeats = self._moves(grid, before, times)
        again = skip & (before == times if grid.corrected else index > 0)
        rows = [
            _Row(
                one.x0,
                one.eps if grid.corrected else _AS_IT_IS,
                moves[i],
                repeats[i] if again[i] else None,
                i % 4 if staged[i] else None,
            )
            for i, one in enumerate(self._readings(grid))
        ]
        return rows, [False] * len(rows)

    def _moves(self, grid: Grid, starts: np.ndarray, ends: np.ndarray) -> list[_Move]:
        here, there = self._cumulative(starts), self._cumulative(ends, self.final_alpha_cumprod)
        if here.min() == 0:
            raise InputError("PNDM cannot step from a sample without any signal; use betas below 1")
        over = here * (1 - there) ** 0.5 + (here * (1 - here) * there) ** 0.5
        over = torch.where(here == there, 1.0, over)  # 0/0 where ᾱ = 1
        columns = (column.tolist() for column in ((there / here) ** 0.5, there - here, over))
        readings = self._readings(grid._replace(times=starts))
        eps = [_AS_IT_IS if grid.corrected else one.eps for one in readings]
        return [_Move(*parts) for parts in zip(eps, *columns, strict=True)]

    def initial_state(self, plan: Plan) -> _State:
        return _State()

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: _State, noise: torch.Tensor | None
    ) -> Advance:
        x0, model_output = row.x0(sample, model_output), row.slope(sample, model_output)
        if row.stage is not None:
            start, slope, state = self._runge_kutta(row.stage, model_output, sample, state)
            move = row.move
        elif state.taken == 1 and row.again is not None:
            assert state.start is not None
            start, move = state.start, row.again
            slope = (model_output + state.history[0]) / 2
        else:
            start, move = sample, row.move
            history = (model_output, *state.history[:3])
            slope = _adams_bashforth(history)
            state = state._replace(history=history, start=sample)
        return Advance(move(start, slope), state._replace(taken=state.taken + 1), x0)

    def _runge_kutta(
        self, stage: int, model_output: torch.Tensor, sample: torch.Tensor, state: _State
    ) -> tuple[torch.Tensor, torch.Tensor, _State]:
        if stage == 0:
            state = state._replace(history=(model_output, *state.history[:3]), start=sample, slope=0.0)
        elif state.start is None:
            raise InputError("a run cannot start inside a Runge-Kutta step; start at step 0, 4, 8, 12 or later")
        assert state.start is not None
        total = state.slope + _STAGE_WEIGHTS[stage] * model_output
        return state.start, total if stage == 3 else model_output, state._replace(slope=total)


def _adams_bashforth(history: Sequence[torch.Tensor]) -> torch.Tensor:
    """The slope that one to four slopes at even steps, latest first, make together."""
    weights = ADAMS_BASHFORTH[len(history) - 1]
    total = history[0] if weights[0] == 1.0 else history[0] * weights[0]
    for weight, slope in zip(weights[1:], history[1:], strict=True):
        total = torch.add(total, slope, alpha=weight)
    return total
