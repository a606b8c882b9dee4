"""Distilled networks: LCM (Luo et al. 2023, arXiv:2310.04378), TCD (Zheng et al. 2024, arXiv:2402.19159)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import ConfigError, InputError
from ..outputs import Output
from .base import Advance, Grid, Scheduler
from .plan import Sum
from .prediction import Mix, Reading


@dataclass
class LCMSchedulerOutput(Output):
    """x at the next noise level, and the picture that the network sees in x."""

    prev_sample: torch.Tensor
    denoised: torch.Tensor | None = None


@dataclass
class TCDSchedulerOutput(Output):
    """x at the next noise level, and before fresh noise was added."""

    prev_sample: torch.Tensor
    pred_noised_sample: torch.Tensor | None = None


class DistilledScheduler(Scheduler):
    """Base of the samplers whose timetable is a part of the one that the network was distilled on.

    That has `original_inference_steps` even steps, of which a run takes the `strength` share at the noise's low end. In
    a run of custom `timesteps` with a `strength` below 1 the reference adds noise after the last step; `corrected` does
    not. `timestep_spacing` and `steps_offset`, which configs of other solvers bring along, change nothing.
    """

    timetable_options: ClassVar = {"original_inference_steps": None, "strength": 1.0}
    _compatibles = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear", trained_betas: Any = None, original_inference_steps: int = 50,
        clip_sample: bool = False, clip_sample_range: float = 1.0, set_alpha_to_one: bool = True, steps_offset: int = 0,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, timestep_spacing: str = "leading", timestep_scaling: float = 10.0,
        rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self._set_up()

    def _set_up(self) -> None:
        super()._set_up()
        self.final_alpha_cumprod = torch.tensor(1.0) if self.config["set_alpha_to_one"] else self.alphas_cumprod[0]

    @property
    def custom_timesteps(self) -> bool:
        """Whether the run's timesteps were given by the caller."""
        return self._active is not None and self._active.grid.exact

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, original_inference_steps: int | None = None,
        timesteps: Any = None, strength: float = 1.0, corrected: bool = False,
    ) -> None:  # fmt: skip
        """Begin a new run with the timetable that `plan` makes of these arguments, its `timesteps` on `device`."""
        shape = {"original_inference_steps": original_inference_steps, "strength": strength, "corrected": corrected}
        super().set_timesteps(num_inference_steps, device, timesteps, **shape)

    def _original(self, steps: int | None, strength: float) -> np.ndarray:
        """The timesteps of the distillation, ascending, up to `strength`."""
        steps = self.config["original_inference_steps"] if steps is None else steps
        if not 0 < strength <= 1:
            raise InputError(f"strength is {strength!r}; a number in (0, 1] is needed")
        if not 1 <= steps <= len(self):
            raise InputError(f"original_inference_steps is {steps}; a number from 1 to {len(self)} is needed")
        return np.arange(1, int(steps * strength) + 1) * (len(self) // steps) - 1

    def _grid(
        self, steps: int, corrected: bool, original_inference_steps: int | None = None, strength: float = 1.0
    ) -> Grid:
        original = self._original(original_inference_steps, strength)[::-1]
        if steps > len(original):
            most = f"original_inference_steps × strength = {len(original)}"
            raise InputError(f"num_inference_steps is {steps}; the network was distilled for at most {most}")
        places = np.floor(np.linspace(0, len(original), num=steps, endpoint=False)).astype(np.int64)
        return Grid(original[places], steps, corrected=corrected)

    def _custom_grid(
        self, corrected: bool, timesteps: np.ndarray, original_inference_steps: int | None = None, strength: float = 1.0
    ) -> Grid:
        self._original(original_inference_steps, strength)
        grid, count = super()._custom_grid(corrected, timesteps), len(timesteps)
        return grid._replace(times=grid.times[count - max(1, min(int(count * strength), count)) :])

    def _renewed(self, grid: Grid) -> list[bool]:
        """After which evaluations noise is added: all but the last of the timetable before `strength` cut it."""
        count = len(grid.times)
        return [i != (count if grid.corrected else grid.steps) - 1 for i in range(count)]


def _at_once(one: Reading, on_x0: float, on_eps: float = 0.0, on_x: float = 0.0) -> Sum:
    """on_x·x + on_x0·x₀ + on_eps·ε, of x and the network's output."""
    on_x0, on_eps = on_x0 / one.x0.over, on_eps / one.eps.over
    return Sum(on_x + on_x0 * one.x0.on_x + on_eps * one.eps.on_x, (on_x0 * one.x0.on_y + on_eps * one.eps.on_y,))


class _LCMRow(NamedTuple):
    x0: Mix
    denoised: Sum  # of x and the network's output, or x₀
    of_x0: bool
    on_denoised: float
    on_noise: float


class LCMScheduler(DistilledScheduler):
    """Steps x ← √ᾱ'·f + √(1 − ᾱ')·z with the picture f = c_skip(t)·x + c_out(t)·x₀; the last x is f (algorithm 2).

    c_skip = 1/(4s² + 1) and c_out = 2s/√(4s² + 1) with s = `timestep_scaling`·t make f = x at t = 0 (app. C).
    """

    def get_scalings_for_boundary_condition_discrete(self, timestep: Any) -> tuple[Any, Any]:
        """c_skip and c_out at `timestep`, a number, array or tensor: 1 and 0 at t = 0."""
        scaled = timestep * self.config["timestep_scaling"]
        return 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5

    def _rows(self, grid: Grid) -> tuple[list[_LCMRow], list[bool]]:
        noisy, (skip, out) = self._renewed(grid), self.get_scalings_for_boundary_condition_discrete(grid.times)
        there = self._cumulative(np.append(grid.times[1:], grid.times[-1]), self.final_alpha_cumprod)
        there = torch.where(torch.tensor(noisy), there, 1.0)
        columns = (skip.tolist(), out.tolist(), (there**0.5).tolist(), ((1 - there) ** 0.5).tolist())
        rows, limited = [], self._limit is not None
        for one, on_x, on_x0, *rest in zip(self._readings(grid), *columns, strict=True):
            denoised = Sum(on_x, (on_x0,)) if limited else _at_once(one, on_x0, on_x=on_x)
            rows.append(_LCMRow(one.x0, denoised, limited, *rest))
        return rows, noisy

    def _advance(
        self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        output = self._read(row, model_output, sample)[0] if row.of_x0 else model_output
        denoised = row.denoised(sample, (output,)).to(sample.dtype)
        previous = denoised * row.on_denoised if row.on_noise else denoised
        return Advance(previous if noise is None else torch.add(previous, noise, alpha=row.on_noise), None, denoised)

    def _outcome(self, result: Advance) -> Output:
        return LCMSchedulerOutput(result.sample, result.pred_original_sample)


class _TCDRow(NamedTuple):
    x0: Mix
    noised: Sum  # of x and the network's output, at timestep s
    on_noised: float
    on_noise: float


class TCDScheduler(DistilledScheduler):
    """Steps x ← √(ᾱ'/ᾱₛ)·xₛ + √(1 − ᾱ'/ᾱₛ)·z with xₛ = √ᾱₛ·x₀ + √(1 − ᾱₛ)·ε at s = ⌊(1 − η)·t'⌋ (algorithm 4).

    Run option: `eta` (γ in the paper) in [0, 1], from none to all of the noise renewed. `original_inference_steps`
    given for a run spreads it over every training timestep. `step` returns xₛ, which is the state, and makes no x₀.
    """

    options: ClassVar = {"eta": 0.3}

    def _check_settings(self) -> None:
        super()._check_settings()
        if self._limit is not None:
            raise ConfigError("TCD has no use for a clipped x₀; leave clip_sample and thresholding off")

    def _original(self, steps: int | None, strength: float) -> np.ndarray:
        original = super()._original(steps, strength)
        return original if steps is None else np.arange(int(len(self) * strength))

    def _rows(self, grid: Grid, *, eta: float) -> tuple[list[_TCDRow], list[bool]]:
        if not 0 <= eta <= 1:
            raise InputError(f"eta is {eta}; it must be within [0, 1]")
        noisy = [one and eta > 0 for one in self._renewed(grid)]
        ends = np.append(grid.times[1:], 0)
        middle = self._cumulative(torch.floor((1 - eta) * torch.from_numpy(ends)).long().numpy())
        share = torch.where(torch.tensor(noisy), self._cumulative(ends) / middle, 1.0)
        columns = [(level**0.5).tolist() for level in (middle, 1 - middle, share, 1 - share)]
        parts = zip(self._readings(grid), *columns, strict=True)
        return [_TCDRow(one.x0, _at_once(one, on_x0, on_eps), *rest) for one, on_x0, on_eps, *rest in parts], noisy

    def _advance(
        self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        noised = row.noised(sample, (model_output,)).to(sample.dtype)
        if noise is None or not row.on_noise:
            return Advance(noised, noised)
        return Advance((noised * row.on_noised).add_(noise, alpha=row.on_noise), noised)

    def _outcome(self, result: Advance) -> Output:
        return TCDSchedulerOutput(result.sample, result.state)
