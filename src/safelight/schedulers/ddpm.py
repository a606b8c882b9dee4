"""DDPM: ancestral sampling (Ho et al. 2020, arXiv:2006.11239), with fixed or learned variance."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError, check_choice
from .base import LEARNED_VARIANCES, Advance, Grid, Plan, Scheduler, SchedulerOutput
from .prediction import PREDICTION_TYPES, Mix

DDPMSchedulerOutput = UnCLIPSchedulerOutput = SchedulerOutput

_FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


class _Row(NamedTuple):
    x0: Mix
    mean: Mix  # of x₀ and x
    std: float
    log_low: float  # of the variance, between which "learned_range" interpolates
    log_high: float


class AncestralSteps(Scheduler):
    """Base of the solvers that step x ← √ᾱ'·β/(1 − ᾱ)·x₀ + √α·(1 − ᾱ')/(1 − ᾱ)·x + s·z."""

    variance_type: str

    def _ends(self, grid: Grid) -> np.ndarray:
        """The timesteps that the steps lead to; −1 is the end."""
        return np.append(grid.times[1:], -1)

    def _betas(self, here: torch.Tensor, there: torch.Tensor, times: np.ndarray, ends: np.ndarray) -> torch.Tensor:
        """β of each step."""
        return 1 - here / there

    def _rows(self, grid: Grid, **options: Any) -> tuple[list[_Row], list[bool]]:
        here, ends = self._cumulative(grid.times), self._ends(grid, **options)
        there = self._cumulative(ends, 1.0)
        beta = self._betas(here, there, grid.times, ends)
        alpha = 1 - beta
        # Where ᾱ = 1 there is no noise left (0/0): x₀ is all there is.
        on_x0 = torch.where(here < 1, there**0.5 * beta / (1 - here), 1.0)
        on_x = torch.where(here < 1, alpha**0.5 * (1 - there) / (1 - here), 0.0)
        small = torch.where(here < 1, (1 - there) / (1 - here) * beta, 0.0).clamp(min=1e-20)
        std = beta**0.5 if "large" in self.variance_type else small**0.5
        if self.variance_type == "fixed_small_log":
            std = (0.5 * small.log()).exp()  # the same, rounded as the reference rounds it
        columns = (column.tolist() for column in (std, small.log(), beta.log()))
        means = map(Mix, on_x0.tolist(), on_x.tolist())
        readings = (one.x0 for one in self._readings(grid))
        rows = [_Row(*parts) for parts in zip(readings, means, *columns, strict=True)]
        noisy = grid.times > 0
        if grid.corrected:
            noisy[-1] = False
        return rows, noisy.tolist()

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        spread: Any = row.std
        if self._learned:
            model_output, variance = model_output.chunk(2, dim=1)
            spread = self._learned_std(row, variance) if noise is not None else 0.0
        x0 = row.x0(sample, model_output)
        if self._limit is not None:
            x0 = self._limit(x0)
        previous = row.mean(x0, sample)
        if noise is not None:
            previous = previous + spread * noise
        return Advance(previous, None, x0)

    def _learned_std(self, row: _Row, variance: torch.Tensor) -> torch.Tensor:
        if self.variance_type == "learned":
            return variance.clamp(min=0) ** 0.5  # a network's output may dip below what a variance can be
        share = (variance + 1) / 2
        return torch.exp(0.5 * (share * row.log_high + (1 - share) * row.log_low))


class DDPMScheduler(AncestralSteps):
    """Steps x ← √ᾱ'·β/(1 − ᾱ)·x₀ + √α·(1 − ᾱ')/(1 − ᾱ)·x + s·z (eq. 7), where α = ᾱ/ᾱ' and β = 1 − α.

    `variance_type`: s² is (1 − ᾱ')/(1 − ᾱ)·β for "fixed_small" and β for "fixed_large" (sec. 3.2; their "_log" twins
    mean the same). The network gives it as a second half of channels for "learned"; for "learned_range" that half, from
    −1 to 1, is the place between the two in log s² (Nichol & Dhariwal 2021, eq. 15). Noise is added at every t > 0. In
    a timetable that ends above t = 0 that includes the last step, which then returns a noisy picture for all but
    "fixed_small"; `corrected` adds none there.
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, variance_type: str | None = "fixed_small",
        clip_sample: bool = True, prediction_type: str = "epsilon", thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0, sample_max_value: float = 1.0,
        timestep_spacing: str = "leading", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        # Configs that come from solvers without a variance of their own say None.
        self.variance_type = "fixed_small" if variance_type is None else variance_type
        check_choice("variance_type", self.variance_type, (*_FIXED, *LEARNED_VARIANCES))
        self._set_up()
        self.one = torch.tensor(1.0)

    @property
    def custom_timesteps(self) -> bool:
        """Whether the run's timesteps were given by the caller."""
        return self._active is not None and self._active.grid.exact and not self._active.grid.corrected


class UnCLIPScheduler(AncestralSteps):
    """DDPM's steps on the timetable of unCLIP (Ramesh et al. 2022, arXiv:2204.06125), which ends at t = 0.

    A plan goes along the timetable. A step goes to the `prev_timestep` that `step` is given, and without it to t − 1,
    as in the reference, wherever the timetable goes on; with `corrected` it goes along the timetable. Run option:
    `along` False, a plan of steps to t − 1.
    """

    options: ClassVar = {"along": True}
    _step_arguments: ClassVar = {"prev_timestep": None, "generator": None, "return_dict": True}
    choices: ClassVar = {
        "prediction_type": PREDICTION_TYPES,
        "beta_schedule": ("squaredcos_cap_v2",),
        "variance_type": ("fixed_small_log", "learned_range"),
    }
    custom = ()
    _compatibles = ()
    _anywhere = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, variance_type: str = "fixed_small_log", clip_sample: bool = True,
        clip_sample_range: float | None = 1.0, prediction_type: str = "epsilon",
        beta_schedule: str = "squaredcos_cap_v2",
    ):  # fmt: skip
        self.variance_type, self.one = variance_type, torch.tensor(1.0)
        self._set_up()

    def _grid(self, steps: int, corrected: bool) -> Grid:
        if not 2 <= steps <= len(self):
            raise InputError(f"num_inference_steps is {steps}; a number from 2 to {len(self)} is needed")
        times = (np.arange(steps) * ((len(self) - 1) / (steps - 1))).round()[::-1].astype(np.int64)
        return Grid(times, steps, corrected=corrected)

    def _ends(self, grid: Grid, along: bool = True) -> np.ndarray:
        return super()._ends(grid) if along else grid.times - 1

    def _betas(self, here: torch.Tensor, there: torch.Tensor, times: np.ndarray, ends: np.ndarray) -> torch.Tensor:
        betas = self.betas[torch.from_numpy(times.copy())]
        return torch.where(torch.from_numpy(ends == times - 1), betas, super()._betas(here, there, times, ends))

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x0, _ = self._read(row, model_output, sample)
        previous = torch.add(x0 * row.mean.on_x, sample, alpha=row.mean.on_y)
        if noise is not None and self._learned:
            previous = previous.addcmul(self._learned_std(row, model_output[:, sample.shape[1] :]), noise)
        elif noise is not None:
            previous = torch.add(previous, noise, alpha=row.std)
        return Advance(previous, None, x0)

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, prev_timestep: Any = None,
        generator: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """One step from `timestep` to `prev_timestep`, or to t − 1 without it."""
        plan, i = self._locate(self._run(), timestep)
        t, following = plan.times[i], plan.times[i + 1] if i + 1 < len(plan) else -1
        end = following if plan.grid.corrected else t - 1
        if prev_timestep is not None:
            end = self._end(plan, prev_timestep)
            if end >= t:
                raise InputError(f"prev_timestep is {end}; a number below timestep {t} is needed")
        if end not in (following, t - 1):
            detour = self._assemble(Grid(np.array([t, end]), plan.num_inference_steps), dict(self.options))
            return self.at(detour, 0).step(model_output, t, sample, end, generator, return_dict)
        # Where both are the same step, the run's plan can stay.
        along = plan.options["along"] if following == t - 1 else end == following
        return super().step(model_output, t, sample, generator=generator, return_dict=return_dict, along=along)

    def _end(self, plan: Plan, prev_timestep: Any) -> Any:
        """`prev_timestep` as a number, −1 for the end."""
        if isinstance(prev_timestep, int) and prev_timestep < 0:
            return -1
        there, i = self._locate(plan, prev_timestep)
        return there.times[i]
