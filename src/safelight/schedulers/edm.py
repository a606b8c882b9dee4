"""Solvers for EDM's networks (Karras et al. 2022, arXiv:2206.00364): Euler, DPM-Solver++, and that of Stable Audio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..brownian import seed_of, tree_of
from ..configuration import register_to_config
from ..errors import ConfigError, InputError, check_positive
from .base import Grid, Plan, SchedulerOutput
from .dpm_multistep import MultistepScheduler
from .euler import ChurnedEuler
from .plan import Row
from .prediction import Mix, Reading
from .spacing import descending, karras
from .timetable import TimetableScheduler

EDMEulerSchedulerOutput = SchedulerOutput


class EDMScheduler(TimetableScheduler):
    """Base: x = x₀ + σ·ε, x₀ = skip·x + out·F(scale·x, `_told(σ)`) for the network F, with table 1's factors.

    A run's σ fall from `sigma_max` to `sigma_min`, evenly in σ^(1/ρ) (`sigma_schedule="karras"`, `rho`) or in log σ
    ("exponential"), and then to 0 (`final_sigmas_type="zero"`) or not at all ("sigma_min").
    """

    custom: ClassVar[tuple[str, ...]] = ()
    timetable_options: ClassVar = {}
    choices: ClassVar = {
        **MultistepScheduler.choices,
        "prediction_type": ("epsilon", "v_prediction"),
        "sigma_schedule": ("karras", "exponential"),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    }
    _compatibles = ()
    _precision = torch.float32  # of the grid, as in the reference

    def _set_up(self) -> None:
        self._check_settings()

    def _check_settings(self) -> None:
        super()._check_settings()
        self._ends = low, high = float(self.config["sigma_min"]), float(self.config["sigma_max"])
        if not 0 < low < high < math.inf:
            raise ConfigError(f"sigma_min is {low!r} and sigma_max {high!r}; 0 < sigma_min < sigma_max is needed")
        check_positive("sigma_data", self.config["sigma_data"])
        check_positive("rho", self.config["rho"])

    def _training_grid(self, corrected: bool) -> Grid:
        return self._spaced(torch.linspace(0, 1, len(self), dtype=self._precision), corrected, "zero")

    def _grid(self, steps: int, corrected: bool) -> Grid:
        return self._spaced(torch.linspace(0, 1, steps, dtype=self._precision), corrected)

    def _spaced(self, places: torch.Tensor, corrected: bool, final: str | None = None) -> Grid:
        """The grid with the σ at `places`, from that of `sigma_max`, 0, to that of `sigma_min`, 1."""
        # As tensors and in the reference's order of operations: Brownian noise depends on the last digit of σ.
        if self.config["sigma_schedule"] == "karras":
            sigmas = karras(*self._ends, places, self.config["rho"])
        else:
            sigmas = torch.linspace(math.log(self._ends[0]), math.log(self._ends[1]), len(places)).exp().flip(0)
        return self._ending(sigmas.float(), corrected, final)

    def _ending(self, sigmas: torch.Tensor, corrected: bool, final: str | None = None) -> Grid:
        """The grid with these σ, and the final one that `final`, else the config, asks for."""
        last = sigmas[-1:] * ((final or self.config["final_sigmas_type"]) == "sigma_min")
        return Grid(self._told(sigmas).numpy(), len(sigmas), torch.cat([sigmas, last]).numpy(), corrected=corrected)

    def _first_sigma(self, grid: Grid) -> float:
        return (self._ends[1] ** 2 + 1) ** 0.5

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        return sigma**0, sigma  # ones, of the kind that `sigma` is

    def _told(self, sigma: torch.Tensor) -> torch.Tensor:
        return 0.25 * sigma.log()

    def _factors(self, sigma: Any) -> tuple[Any, Any, Any]:
        """skip, out and scale at a float or a tensor; F is v of scale·x, or −v where it is called "epsilon"."""
        data, sign = self.config["sigma_data"], -1 if self.config["prediction_type"] == "v_prediction" else 1
        total = sigma**2 + data**2
        return data**2 / total, sign * sigma * data / total**0.5, 1 / total**0.5

    def _reading(self, sigma: float) -> Reading:
        return Reading(Mix(*self._factors(sigma)[:2]), Mix(1.0, -1.0, sigma))

    def _readings(self, grid: Grid) -> list[Reading]:
        return [self._reading(sigma) for _, sigma in self._levels(grid)]

    def scale_input(self, plan: Plan, i: int, sample: torch.Tensor) -> torch.Tensor:
        """x/√(σ² + σ_data²) at evaluation `i`."""
        self._row(plan, i)
        return self.precondition_inputs(sample, plan.levels[i][1])

    def precondition_inputs(self, sample: torch.Tensor, sigma: Any) -> torch.Tensor:
        """What the network sees of `sample` at `sigma` (a number, or a tensor that broadcasts against it)."""
        return sample * self._factors(sigma)[2]

    def precondition_noise(self, sigma: Any) -> torch.Tensor:
        """What the network is told of `sigma` (a number, or a tensor)."""
        return self._told(sigma if isinstance(sigma, torch.Tensor) else torch.tensor([sigma]))

    def precondition_outputs(self, sample: torch.Tensor, model_output: torch.Tensor, sigma: Any) -> torch.Tensor:
        """The x₀ that `model_output` means for `sample` at `sigma` (a number, or a tensor that broadcasts)."""
        skip, out, _ = self._factors(sigma)
        return skip * sample + out * model_output


class EDMEulerScheduler(ChurnedEuler, EDMScheduler):
    """Steps x ← x + (σ' − σ)·(x − x₀)/σ, after raising σ to σ̂ = (1 + γ)·σ by fresh noise where churn is on.

    A known x₀ goes to `step` as `pred_original_sample`, to `advance` as state. Custom `sigmas` that fall are σ; ones
    that rise, in [0, 1], are places in the grid (all of them in the reference), of which "exponential" only counts.
    """

    custom = ("sigmas",)
    _step_arguments: ClassVar = {"generator": None, "return_dict": True, "pred_original_sample": None}
    _precision = torch.float64

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
        sigma_schedule: str = "karras", num_train_timesteps: int = 1000, prediction_type: str = "epsilon",
        rho: float = 7.0, final_sigmas_type: str = "zero",
    ):  # fmt: skip
        self._set_up()

    def _training_grid(self, corrected: bool) -> Grid:
        return self._spaced(torch.arange(len(self) + 1, dtype=self._precision) / len(self), corrected)

    @staticmethod
    def _given_values(name: str, values: Sequence[float]) -> np.ndarray:
        rising = hasattr(values, "__len__") and len(values) > 1 and values[0] < values[1]
        return descending(name, list(values)[::-1])[::-1].copy() if rising else descending(name, values)

    def _custom_grid(self, corrected: bool, sigmas: np.ndarray) -> Grid:
        first, last = sigmas[[0, -1]].tolist()
        if first < 0 or (last <= 0 if first >= last else last > 1):
            raise InputError(f"sigmas are {sigmas.tolist()}; falling σ > 0, or rising places in [0, 1], are needed")
        given = torch.from_numpy(sigmas)
        return self._spaced(given, corrected) if first < last else self._ending(given.float(), corrected)


class EDMDPMSolverMultistepScheduler(EDMScheduler, MultistepScheduler):  # type: ignore[misc]  # has no `mu`
    """`DPMSolverMultistepScheduler` with α = 1, x ← (σ'/σ)·x + (1 − σ'/σ)·D, by "dpmsolver++" or "sde-dpmsolver++"."""

    _without_third_order = ("sde-dpmsolver++",)

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
        sigma_schedule: str = "karras", num_train_timesteps: int = 1000, prediction_type: str = "epsilon",
        rho: float = 7.0, solver_order: int = 2, thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, final_sigmas_type: str = "zero",
    ):  # fmt: skip
        self._set_up()


class CosineDPMSolverMultistepScheduler(EDMScheduler, MultistepScheduler):  # type: ignore[misc]  # has no `mu`
    """x ← (σ'/σ)·e^−h·x + (1 − e^−2h)·D + σ'·√(1 − e^−2h)·z with h = log(σ/σ'), D extrapolated from the last x₀.

    Stable Audio's (arXiv:2404.10301): the network is told 2/π·atan(σ). The z are increments of a Brownian motion over
    [σ', σ], divided by √(σ − σ'). Its seed is the one that `generator`, or each of a list, began with: how far that has
    gone makes no difference, and runs of more steps follow the same noise. Without one, z are fresh numbers.
    """

    choices: ClassVar = {**EDMScheduler.choices, "solver_order": (1, 2)}
    _algorithm = "sde-dpmsolver++"

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.3, sigma_max: float = 500, sigma_data: float = 1.0,
        sigma_schedule: str = "exponential", num_train_timesteps: int = 1000, solver_order: int = 2,
        prediction_type: str = "v_prediction", rho: float = 7.0, solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, final_sigmas_type: str | None = "zero",
    ):  # fmt: skip
        self._set_up()

    def _told(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma.atan() / math.pi * 2

    def _rows(self, grid: Grid) -> tuple[list[Row], list[bool]]:
        rows, _ = super()._rows(grid)
        return rows, [row.steps[0].on_noise > 0 for row in rows]

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """The `noise` of evaluation `i`: of the Brownian motion that `generator`, or each of a list, began with."""
        if generator is None or not plan.needs_noise[i]:
            return super().draw_noise(plan, i, sample, generator, dtype)
        tree = tree_of(plan, *self._ends, sample, seed_of(generator), dtype or sample.dtype)
        return tree.normalised(*plan.grid.sigmas[plan.begin + i :][:2].tolist())
