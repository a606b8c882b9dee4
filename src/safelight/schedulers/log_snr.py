"""What exponential integrators share: steps in λ = log(α/σ), each linear in x, the outputs so far, and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..errors import ConfigError, InputError
from .base import Advance, Grid, Plan, Scheduler
from .plan import Sum
from .prediction import Mix, Reading, reading
from .spacing import chosen_grid, ending_above_zero, shifted, sigma_to_t
from .timetable import TimetableScheduler


class LogSNRScheduler(TimetableScheduler):
    """Base of the solvers of Lu et al. 2022 and their kin; σ is σ/α of x = α·x₀ + σ·ε, the network sees x itself.

    With `use_flow_sigmas`, α = 1 − σ; the run option `mu` then sets the shift to e^μ (`use_dynamic_shifting`). The
    reference reads a flow prediction as x − σ·y, also without flow sigmas, and a v-prediction as α·x − σ·y, also with
    them, where that is not x₀; `corrected` reads them right. The network is told whole timesteps.
    """

    custom: ClassVar[tuple[str, ...]] = ("timesteps",)
    timetable_options: ClassVar = {"mu": None}
    choices: ClassVar = {
        **Scheduler.choices,
        "final_sigmas_type": ("zero", "sigma_min"),
        "time_shift_type": ("exponential",),
        "solver_order": (1, 2, 3),
    }
    # Names of other solvers of the family, which their configs bring along -> what they mean here.
    foreign: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    _flow_grids: ClassVar[tuple[Any, ...]] = ()  # grids that flow sigmas can be spaced by
    _x0_from_noise = False  # whether a solver that combines ε limits the x₀ that follows from it
    _repeats_last = True  # where a sigma grid was asked for, the final σ is its last

    def _set_up(self) -> None:
        super()._set_up()
        if self._settings.get("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # zero would make the first σ infinite

    def _check_settings(self) -> None:
        for name, meanings in self.foreign.items():
            if self._settings.get(name) in meanings:
                self.register_to_config(**{name: meanings[self.config[name]]})
        super()._check_settings()
        if chosen_grid(self._settings) not in (None, *self._flow_grids) and self._flow:
            raise ConfigError("use_flow_sigmas is a grid of its own; set no other use_… flag with it")

    @property
    def _flow(self) -> bool:
        return bool(self._settings.get("use_flow_sigmas"))

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        if self._flow:
            return 1 - sigma, sigma
        alpha = 1 / (sigma**2 + 1) ** 0.5
        return alpha, sigma * alpha

    def _first_sigma(self, grid: Grid) -> float:
        return 1.0

    def _training_grid(self, corrected: bool) -> Grid:
        sigmas = np.append(self._training_sigmas()[::-1], np.float32(0))
        return Grid(np.arange(len(self), dtype=np.float32)[::-1], len(self), sigmas, corrected=corrected)

    def _grid(self, steps: int, corrected: bool, mu: float | None = None) -> Grid:
        settings, train = self._settings, len(self)
        spacing, offset = settings.get("timestep_spacing", "linspace"), settings.get("steps_offset", 0)
        times = ending_above_zero(spacing, train, train - self._clipped(), steps, offset, corrected)
        return self._sigmas_at(times, steps, corrected, mu)

    def _custom_grid(self, corrected: bool, timesteps: np.ndarray, mu: float | None = None) -> Grid:
        if chosen_grid(self._settings) or self._flow:
            raise InputError("custom timesteps contradict a config that derives timesteps from its sigmas")
        if timesteps[-1] < 0 or timesteps[0] > len(self) - 1:
            raise InputError(f"timesteps are {timesteps.tolist()}; numbers in [0, {len(self) - 1}] are needed")
        return self._sigmas_at(timesteps.astype(np.int64), len(timesteps), corrected, mu)

    def _clipped(self) -> int:
        """How many of the noisiest training timesteps `lambda_min_clipped` leaves out."""
        return int((-np.log(self._training_sigmas()) < self._settings.get("lambda_min_clipped", -math.inf)).sum())

    def _sigmas_at(
        self, times: np.ndarray, steps: int, corrected: bool, mu: float | None, given: np.ndarray | None = None
    ) -> Grid:
        """The grid that the config asks for: through `times`, over all training sigmas, or of `given` flow sigmas."""
        settings, training = self._settings, self._training_sigmas()
        if mu is not None and not settings.get("use_dynamic_shifting"):
            raise InputError(f"mu is {mu!r}, which needs a config with use_dynamic_shifting=True")
        make = chosen_grid(settings)
        if make is not None:
            low, high = settings.get("sigma_min") or training[0], settings.get("sigma_max") or training[-1]
            sigmas = make(float(low), float(high), steps)
            times = sigma_to_t(sigmas, training)
            times = times.round() if self._rounds() else times
        elif self._flow:
            sigmas = self._shifted(self._flow_sigmas(steps) if given is None else given, mu)
            times = sigmas * len(self)
        else:
            sigmas = np.interp(times, np.arange(len(training)), training)
        final = sigmas[-1] if self._repeats_last and (make is not None or self._flow) else training[0]
        final = 0.0 if settings.get("final_sigmas_type") == "zero" else final
        sigmas = np.append(sigmas, final).astype(np.float32)
        return Grid(times.astype(np.int64), len(times), sigmas, corrected=corrected)

    def _rounds(self) -> bool:
        """Whether timesteps that come from sigmas are rounded; otherwise they are cut off."""
        return bool(self._settings.get("use_karras_sigmas"))

    def _flow_sigmas(self, steps: int) -> np.ndarray:
        return (1 - np.linspace(1, 1 / len(self), steps + 1))[:0:-1]

    def _shifted(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        return shifted(sigmas, self._settings["flow_shift"] if mu is None else math.exp(mu))

    def _track(self, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """α, σ and λ of each evaluation and of the end, float64."""
        alpha, sigma = (part.double().numpy() for part in self._alpha_sigma(torch.from_numpy(grid.sigmas)))
        with np.errstate(divide="ignore"):
            return alpha, sigma, np.log(alpha) - np.log(sigma)

    def _readings(self, grid: Grid) -> list[Reading]:
        kind, settings = self.config["prediction_type"], self._settings
        readings = []
        for (alpha, sigma), given in zip(self._levels(grid), grid.sigmas.tolist(), strict=False):
            one = reading(kind, alpha, sigma)
            if not grid.corrected and kind == "flow_prediction":
                one = one._replace(x0=Mix(1.0, -given))
            if not grid.corrected and kind == "v_prediction":
                through = self._x0_from_noise and self._reads_noise
                x0 = Mix(1 - sigma**2, -sigma * alpha, alpha) if through else Mix(alpha, -sigma)
                one = Reading(x0, Mix(sigma, alpha))
            if settings.get("thresholding"):
                one = one._replace(eps=reading("sample", alpha, sigma).eps)
            readings.append(one)
        return readings

    def _order_at(self, i: int, count: int) -> int:
        """The highest order that the config allows at evaluation `i` of `count`."""
        settings, left = self._settings, count - i
        few = settings["lower_order_final"] and count < 15
        ends = settings.get("euler_at_final") or settings.get("final_sigmas_type") == "zero"
        most = 1 if left == 1 and (few or ends) else 2 if left == 2 and few else 3
        return min(most, settings["solver_order"])


class CorrectedRow(NamedTuple):
    """A `Row` with the steps that take the one before again; they combine the newest output as well."""

    x0: Mix
    eps: Mix
    steps: tuple[Sum, ...]
    correct: tuple[Sum, ...]  # by how many outputs there are by then
    other: Any = None  # a predictor in place of `steps`


class CorrectedState(NamedTuple):
    """The outputs so far, latest first, where the latest step started, and its noise (or its predictor's state)."""

    outputs: tuple[torch.Tensor, ...] = ()
    start: torch.Tensor | None = None
    extra: Any = None


class CorrectingScheduler(LogSNRScheduler):
    """Base of the predictor–corrector solvers, whose every evaluation also serves to take the step before again."""

    def initial_state(self, plan: Plan) -> Any:
        return CorrectedState()

    def _advance(
        self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x0, output = self._read(row, model_output, sample)
        outputs = (output, *state.outputs)
        if state.start is not None and row.correct:
            correct = row.correct[min(len(outputs), len(row.correct)) - 1]
            sample = correct(state.start, outputs, state.extra).to(sample.dtype)
        outputs = outputs[: self._memory]
        if row.other is not None:
            predictor, plan, i = row.other
            previous, extra, _ = predictor.advance(plan, i, model_output, sample, state.extra, noise)
        else:
            step, extra = row.steps[min(len(outputs), len(row.steps)) - 1], noise
            previous = step(sample, outputs, noise).to(torch.promote_types(sample.dtype, output.dtype))
        return Advance(previous, CorrectedState(outputs, sample, extra), x0)
