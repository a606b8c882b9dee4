"""Consistency sampling on the circle x = cos(t)·x₀ + sin(t)·z (Lu & Song 2024, arXiv:2410.11081, sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError, check_positive
from .base import Advance, Grid, Plan, SchedulerOutput
from .prediction import Mix, reading
from .timetable import TimetableScheduler

SCMSchedulerOutput = SchedulerOutput

_LARGEST, _BETWEEN = 1.5708, 1.3


class _Row(NamedTuple):
    x0: Mix
    keep: float  # of x₀
    noise: float


class SCMScheduler(TimetableScheduler):
    """Steps x ← cos(t')·x₀ + sin(t')·σ_d·z with x₀ = cos(t)·x − sin(t)·y, fresh noise z and σ_d = `sigma_data`.

    Angles t fall evenly from `max_timesteps` to 0; in a run of two steps the one between is `intermediate_timesteps`,
    unless that is None. Custom `timesteps` are all angles, with the final one. `sigmas` and `timesteps` show the
    angles: one more than there are evaluations, so that loops leave out the last.

    The reference refuses any other number of steps than two unless `intermediate_timesteps=None` is given, and custom
    `timesteps` unless `max_timesteps=None` is; here what does not apply is only refused where it is no default.
    """

    _compatibles = ()
    timetable_options: ClassVar = {"max_timesteps": _LARGEST, "intermediate_timesteps": _BETWEEN}
    choices: ClassVar = {"prediction_type": ("trigflow",)}

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, prediction_type: str = "trigflow", sigma_data: float = 0.5):
        self._set_up()

    def _set_up(self) -> None:
        self._check_settings()

    def _check_settings(self) -> None:
        super()._check_settings()
        check_positive("sigma_data", self.config["sigma_data"])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        device: torch.device | str | None = None,
        max_timesteps: float | None = _LARGEST,
        intermediate_timesteps: float | None = _BETWEEN,
        corrected: bool = False,
    ) -> None:
        """Begin a new run with the timetable that `plan` makes of these arguments, its `timesteps` on `device`."""
        between = {"max_timesteps": max_timesteps, "intermediate_timesteps": intermediate_timesteps}
        super().set_timesteps(num_inference_steps, device, timesteps, corrected=corrected, **between)

    def _check_given(self, steps: int | None, arrays: Mapping[str, np.ndarray]) -> None:
        count = len(arrays.get("timesteps", [])) - 1
        if arrays and (count < 1 or steps not in (None, count)):
            wanted = "at least 2" if steps is None else f"{steps + 1} for {steps} steps"
            raise InputError(f"timesteps has {count + 1} angles; {wanted} are needed")

    def _shown(self, plan: Plan) -> torch.Tensor:
        final = torch.tensor([plan.grid.sigmas[-1]], device=plan.timesteps.device)
        return torch.cat([plan.timesteps, final])

    def _training_grid(self, corrected: bool) -> Grid:
        return self._grid(len(self), corrected, _LARGEST, None)

    def _grid(
        self,
        steps: int,
        corrected: bool,
        max_timesteps: float | None = _LARGEST,
        intermediate_timesteps: float | None = _BETWEEN,
    ) -> Grid:
        if steps > len(self):
            raise InputError(f"num_inference_steps is {steps}; at most num_train_timesteps={len(self)} are possible")
        if max_timesteps is None:
            raise InputError("max_timesteps is None; an angle is needed, such as the default, π/2")
        if steps == 2 and intermediate_timesteps is not None:
            return self._angles(np.array([max_timesteps, intermediate_timesteps, 0.0]))
        if intermediate_timesteps not in (None, _BETWEEN):
            raise InputError(f"intermediate_timesteps is {intermediate_timesteps}, but only runs of two steps have one")
        return self._angles(torch.linspace(max_timesteps, 0, steps + 1).numpy())

    def _custom_grid(
        self,
        corrected: bool,
        timesteps: np.ndarray,
        max_timesteps: float | None = _LARGEST,
        intermediate_timesteps: float | None = _BETWEEN,
    ) -> Grid:
        if max_timesteps not in (None, _LARGEST) or intermediate_timesteps not in (None, _BETWEEN):
            raise InputError("max_timesteps and intermediate_timesteps contradict custom timesteps; leave them out")
        return self._angles(timesteps)

    def _angles(self, angles: np.ndarray) -> Grid:
        if not math.pi / 2 + 1e-4 > angles[0] or angles[-1] < 0 or (np.diff(angles) >= 0).any():
            raise InputError(f"timesteps are {angles.tolist()}; falling angles in [0, π/2] are needed")
        angles = angles.astype(np.float32)
        return Grid(angles[:-1], len(angles) - 1, angles, exact=True)

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        return sigma.cos(), sigma.sin() * self.config["sigma_data"]

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """`sample`: what the network sees of it is for the caller to scale, by 1/σ_d."""
        return sample

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        angle = torch.from_numpy(grid.sigmas)
        alpha, sigma = angle.cos().tolist(), angle.sin().tolist()
        # σ_d is in y, so that x and y are those of a v-prediction whose noise has the data's spread.
        readings = [reading("v_prediction", *pair).x0 for pair in zip(alpha[:-1], sigma[:-1], strict=True)]
        spread = self.config["sigma_data"]
        noise = [spread * value for value in sigma[1:]]
        return [_Row(*parts) for parts in zip(readings, alpha[1:], noise, strict=True)], [True] * len(readings)

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """Standard normal noise as `Scheduler.draw_noise` makes it, in float32."""
        self._row(plan, i)  # `timesteps` shows one more than there are
        return super().draw_noise(plan, i, sample, generator, torch.float32)

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        assert noise is not None
        x0 = row.x0(sample, model_output)
        return Advance(torch.add(x0 * row.keep, noise, alpha=row.noise), None, x0)
