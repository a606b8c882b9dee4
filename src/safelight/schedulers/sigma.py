"""What solvers that work in σ share: x = x₀ + σ·ε, a grid of σ, inputs scaled to what the network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from .base import Advance, Grid, Plan, Scheduler
from .prediction import Mix, Reading, reading
from .spacing import chosen_grid, sigma_to_t, spaced
from .timetable import TimetableScheduler


class SlopeRow(NamedTuple):
    """An evaluation at `sigma`, from where a step goes along the slope (x − x₀)/σ, by `change` of σ."""

    x0: Mix
    sigma: float
    change: float
    up: float = 0.0  # the standard deviation of the noise
    s_noise: float = 1.0  # a factor of the noise, which rounds first
    rest: float | None = None  # the second of two in a step: by how much its slope goes on from where the step began


class SigmaScheduler(TimetableScheduler):
    """Base of the solvers in σ = √((1 − ᾱ)/ᾱ) (Karras et al. 2022); the network sees x/√(σ² + 1).

    `interpolation_type="log_linear"` in the reference makes one σ too many, so that a run ends at the smallest σ
    instead of the final one, and tells the network timesteps of another grid; `corrected` repairs both.
    """

    custom: ClassVar[tuple[str, ...]] = ("timesteps", "sigmas")
    _precision: ClassVar[type] = np.float32  # of the timesteps
    _mean = False  # whether steps of two evaluations go along the mean of both slopes
    choices: ClassVar = {
        **Scheduler.choices,
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def _set_up(self) -> None:
        super()._set_up()
        if self._settings.get("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # zero would make the first σ infinite

    def _check_settings(self) -> None:
        super()._check_settings()
        settings, kind = self._settings, self._settings["prediction_type"]
        chosen_grid(settings)
        self._predicts_slope = kind == "epsilon" and self._limit is None
        # EDM's networks are told log(σ)/4 instead of a training timestep.
        self._continuous = kind == "v_prediction" and settings.get("timestep_type") == "continuous"

    def _training_grid(self, corrected: bool) -> Grid:
        sigmas = np.append(self._training_sigmas()[::-1], np.float32(0))
        return self._told(np.arange(len(self))[::-1], sigmas, len(self), corrected)

    def _grid(self, steps: int, corrected: bool, num_train_timesteps: int | None = None) -> Grid:
        settings, train = self._settings, len(self) if num_train_timesteps is None else num_train_timesteps
        if isinstance(train, bool) or not isinstance(train, int) or not 0 < train <= len(self):
            raise InputError(f"num_train_timesteps is {train!r}; a whole number from 1 to {len(self)} is needed")
        times = spaced(settings["timestep_spacing"], train, steps, settings["steps_offset"], corrected)
        return self._sigmas_at(times, steps, corrected)

    def _custom_grid(
        self, corrected: bool, timesteps: Any = None, sigmas: Any = None, num_train_timesteps: int | None = None
    ) -> Grid:
        training = self._training_sigmas()
        if num_train_timesteps is not None:
            raise InputError("num_train_timesteps spreads a number of steps; custom timesteps leave nothing to spread")
        if sigmas is not None:
            if len(sigmas) < 2 or sigmas[-1] < 0:
                raise InputError(f"sigmas are {sigmas.tolist()}; at least two are needed, the last of them ≥ 0")
            return self._told(sigma_to_t(sigmas[:-1], training), sigmas, len(sigmas) - 1, corrected, exact=True)
        if chosen_grid(self._settings) or self._continuous:
            raise InputError("custom timesteps contradict a config that derives timesteps from its sigmas; pass sigmas")
        if timesteps[-1] < 0 or timesteps[0] > len(self) - 1:
            raise InputError(f"timesteps are {timesteps.tolist()}; numbers in [0, {len(self) - 1}] are needed")
        return self._sigmas_at(timesteps, len(timesteps), corrected)

    def _sigmas_at(self, times: np.ndarray, steps: int, corrected: bool) -> Grid:
        """The grid that the config asks for, through `times` or between the σ of the first and the last of them."""
        settings, training = self._settings, self._training_sigmas()
        times = times.astype(self._precision)
        sigmas = np.interp(times, np.arange(len(training)), training)
        if settings.get("interpolation_type") == "log_linear":
            high, low = np.log(training[[-1, 0]])
            sigmas = torch.linspace(high, low, steps + (not corrected)).exp().numpy().astype(np.float64)
            times = sigma_to_t(sigmas, training) if corrected else times
        if (make := chosen_grid(settings)) is not None:
            low, high = settings.get("sigma_min"), settings.get("sigma_max")
            low, high = sigmas[-1] if low is None else low, sigmas[0] if high is None else high
            if not 0 < low <= high:
                raise InputError(f"sigmas are to go from {high} down to {low}; sigma_min must be positive and smaller")
            times = sigma_to_t(sigmas := make(low, high, steps), training)
        final = training[0] if settings.get("final_sigmas_type") == "sigma_min" else 0.0
        return self._told(times, np.append(sigmas, final), steps, corrected)

    def _told(self, times: np.ndarray, sigmas: np.ndarray, steps: int, corrected: bool, exact: bool = False) -> Grid:
        sigmas = sigmas.astype(np.float32)
        if not (sigmas[: len(times)] > 0).all():
            raise InputError(f"sigmas are {sigmas.tolist()}; all but the final one must be positive")
        if self._continuous:
            times = (0.25 * torch.from_numpy(sigmas[:-1].copy()).log()).numpy()
        return Grid(times.astype(self._precision), steps, sigmas, exact, corrected)

    def _first_sigma(self, grid: Grid) -> float:
        largest = float(grid.sigmas.max())
        return largest if self._settings["timestep_spacing"] in ("linspace", "trailing") else (largest**2 + 1) ** 0.5

    def _reading(self, sigma: float) -> Reading:
        """How x₀ and ε follow from x = x₀ + σ·ε and the output of a network that saw x/√(σ² + 1)."""
        alpha = (sigma**2 + 1) ** -0.5
        scaled = reading(self.config["prediction_type"], alpha, sigma * alpha)
        return Reading(scaled.x0.of_scaled(alpha), scaled.eps.of_scaled(alpha))

    def _read(self, row: Any, model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x₀ and the slope (x − x₀)/σ, which is what networks predict that predict ε."""
        x0 = row.x0(sample, model_output)
        if self._limit is not None:
            x0 = self._limit(x0)
        return x0, model_output if self._predicts_slope else (sample - x0).div_(row.sigma)

    def _advance(
        self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x = sample if sample.itemsize > 2 else sample.float()
        x0, slope = self._read(row, model_output, x)
        start, change, kept = x, row.change, None
        if row.rest is None:
            kept = (x, slope) if self.order == 2 else None
        elif state is not None:
            start, change, slope = state[0], row.rest, slope + state[1] if self._mean else slope
        # Rounded as in the reference: at a σ in the thousands it is seen in predictions of order one.
        previous = torch.add(start, slope, alpha=change) if self._predicts_slope else (slope * change).add_(start)
        if noise is not None and row.up:
            previous.add_(noise, alpha=row.up)
        cast = self.order == 1 or x is not sample
        return Advance(previous.to(model_output.dtype) if cast else previous, kept, x0)

    def scale_input(self, plan: Plan, i: int, sample: torch.Tensor) -> torch.Tensor:
        """x/√(σ² + 1) at evaluation `i`."""
        self._row(plan, i)
        return sample / (plan.levels[i][1] ** 2 + 1) ** 0.5

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, corrected: bool = False
    ) -> torch.Tensor:
        """√ᾱ·ε − √(1 − ᾱ)·x₀; in the reference ᾱ is that of the place in the timetable, `corrected` the timestep's."""
        index = self._indices(timesteps)
        table = 1 / (self.sigmas**2 + 1) if corrected else self.alphas_cumprod
        alpha, sigma = self._spread(table.to(sample.device), index, sample, corrected)
        return alpha * noise - sigma * sample


class TwoEvaluationScheduler(SigmaScheduler):
    """Base of the solvers that evaluate the network twice in every step but the last: at its start, and once more.

    Evaluation 2k begins step k from σ to σ'; evaluation 2k + 1 ends it, at the σ that `_second` says. `sigmas` shows
    that one as σ'. Timetable option: `num_train_timesteps` spreads the run over only so many training timesteps.
    """

    order = 2
    custom: ClassVar[tuple[str, ...]] = ()
    timetable_options: ClassVar = {"num_train_timesteps": None}

    def _second(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The σ of the second evaluation of steps from `start` to `end`."""
        return end

    def _training_grid(self, corrected: bool) -> Grid:
        return self._grid(len(self), corrected)

    def _told(self, times: np.ndarray, sigmas: np.ndarray, steps: int, corrected: bool, exact: bool = False) -> Grid:
        grid = super()._told(times, sigmas, steps, corrected, exact)
        twice = np.append(1, np.full(len(grid.times) - 1, 2))
        grid = grid._replace(times=np.repeat(grid.times, twice), sigmas=np.repeat(grid.sigmas, np.append(twice, 1)))
        grid.times[1::2] = sigma_to_t(self._evaluated(grid)[1::2], self._training_sigmas())
        return grid

    def _evaluated(self, grid: Grid) -> np.ndarray:
        """The σ of each evaluation."""
        sigmas = grid.sigmas[: len(grid.times)].copy()
        sigmas[1::2] = self._second(sigmas[:-1:2], sigmas[1::2])
        return sigmas

    def _levels(self, grid: Grid) -> Sequence[tuple[float, float]]:
        return [(1.0, sigma) for sigma in self._evaluated(grid).tolist()]


def ancestral(start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far down a step goes, end²/start, and how much noise then takes it up to `end`: down² + up² = end²."""
    # In the reference's order: where `end` is far below `start`, much of it is rounding.
    up = (end**2 * (start**2 - end**2) / start**2) ** 0.5
    return (end**2 - up**2).clamp(min=0) ** 0.5, up
