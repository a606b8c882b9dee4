"""Networks behind the preconditioning of EDM, and their noise levels (Karras et al. 2022, arXiv:2206.00364)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..errors import ConfigError
from .base import Grid, Plan
from .prediction import Mix, Reading, reading
from .spacing import karras
from .timetable import TimetableScheduler


class Preconditioning(NamedTuple):
    """The factors in x₀ = skip·x + out·F(scale·x), where F is the network (table 1); floats or tensors."""

    skip: Any
    out: Any
    scale: Any


def preconditioning(prediction_type: str, sigma: Any, sigma_data: float) -> Preconditioning:
    """The factors at `sigma` (a float or a tensor) for data with standard deviation `sigma_data`.

    Of scale·x = α·x₀/σ_data + √(1 − α²)·ε, a "v_prediction" network gives v; an "epsilon" one, in this family, −v.
    """
    total = sigma**2 + sigma_data**2
    scale = 1 / total**0.5
    out = sigma * sigma_data * scale
    return Preconditioning(sigma_data**2 / total, -out if prediction_type == "v_prediction" else out, scale)


class EDMScheduler(TimetableScheduler):
    """Base of the solvers for EDM's networks: x = x₀ + σ·ε, and the network sees x/√(σ² + σ_data²) and `_told(σ)`.

    A run's σ fall from `sigma_max` to `sigma_min`, evenly in σ^(1/ρ) (`sigma_schedule="karras"`, `rho`) or in log σ
    ("exponential"), and then to 0 (`final_sigmas_type="zero"`) or not at all ("sigma_min"). In the reference an
    exponential run of a single step starts at `sigma_min`; `corrected` starts it at `sigma_max`.
    """

    custom: ClassVar[tuple[str, ...]] = ()
    timetable_options: ClassVar = {}
    choices: ClassVar = {
        "prediction_type": ("epsilon", "v_prediction"),
        "sigma_schedule": ("karras", "exponential"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }
    _compatibles = ()
    _precision = torch.float32  # of the grid, as in the reference

    def _set_up(self) -> None:
        self._check_settings()

    def _check_settings(self) -> None:
        super()._check_settings()
        settings = self._settings
        low, high, data, rho, train = (
            settings[name] for name in ("sigma_min", "sigma_max", "sigma_data", "rho", "num_train_timesteps")
        )
        if not 0 < low < high < math.inf:
            raise ConfigError(f"sigma_min is {low!r} and sigma_max {high!r}; 0 < sigma_min < sigma_max is needed")
        for name, value in (("sigma_data", data), ("rho", rho)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value!r}; a positive number is needed")
        if isinstance(train, bool) or not isinstance(train, int) or train < 1:
            raise ConfigError(f"num_train_timesteps is {train!r}; a positive integer is needed")

    # the timetable

    def _training_grid(self, corrected: bool) -> Grid:
        return self._told_at(self._spaced(self._places(len(self)), corrected), 0.0, corrected)

    def _grid(self, steps: int, corrected: bool) -> Grid:
        return self._final(self._spaced(self._places(steps), corrected), corrected)

    def _places(self, count: int) -> torch.Tensor:
        """Even places in the grid, from that of `sigma_max`, 0, to that of `sigma_min`, 1."""
        return torch.linspace(0, 1, count, dtype=self._precision)

    def _spaced(self, places: torch.Tensor, corrected: bool) -> np.ndarray:
        # As tensors and in the reference's order of operations: Brownian noise depends on the last digit of σ.
        low, high = self.config["sigma_min"], self.config["sigma_max"]
        if self.config["sigma_schedule"] == "karras":
            sigmas = karras(low, high, places, self.config["rho"])
        elif corrected:
            sigmas = high * (low / high) ** places
        else:
            sigmas = torch.linspace(math.log(low), math.log(high), len(places)).exp().flip(0)
        return sigmas.float().numpy()

    def _final(self, sigmas: np.ndarray, corrected: bool) -> Grid:
        """The grid with these σ and the final one that the config asks for."""
        return self._told_at(sigmas, 0.0 if self.config["final_sigmas_type"] == "zero" else sigmas[-1], corrected)

    def _told_at(self, sigmas: np.ndarray, final: float, corrected: bool) -> Grid:
        times = self.precondition_noise(torch.from_numpy(sigmas)).numpy()
        return Grid(times, len(sigmas), np.append(sigmas, np.float32(final)), corrected=corrected)

    def _first_sigma(self, grid: Grid) -> float:
        return (self.config["sigma_max"] ** 2 + 1) ** 0.5

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        return sigma**0, sigma  # ones, of the kind that `sigma` is

    # the network

    def _preconditioning(self, sigma: Any) -> Preconditioning:
        return preconditioning(self.config["prediction_type"], sigma, self.config["sigma_data"])

    def _reading(self, sigma: float) -> Reading:
        """How x₀ follows from x and the network's output, and ε from x and x₀."""
        skip, out, _ = self._preconditioning(sigma)
        return Reading(Mix(skip, out), reading("sample", 1.0, sigma).eps)

    def _readings(self, grid: Grid) -> list[Reading]:
        return [self._reading(sigma) for _, sigma in self._levels(grid)]

    def scale_input(self, plan: Plan, i: int, sample: torch.Tensor) -> torch.Tensor:
        """x/√(σ² + σ_data²) at evaluation `i`."""
        self._row(plan, i)
        return self.precondition_inputs(sample, plan.levels[i][1])

    def precondition_inputs(self, sample: torch.Tensor, sigma: Any) -> torch.Tensor:
        """What the network sees of `sample` at `sigma` (a number, or a tensor that broadcasts against it)."""
        return sample * self._preconditioning(sigma).scale

    def precondition_noise(self, sigma: Any) -> torch.Tensor:
        """What the network is told of `sigma` (a number, or a tensor)."""
        return self._told(sigma if isinstance(sigma, torch.Tensor) else torch.tensor([sigma]))

    def precondition_outputs(self, sample: torch.Tensor, model_output: torch.Tensor, sigma: Any) -> torch.Tensor:
        """The x₀ that `model_output` means for `sample` at `sigma` (a number, or a tensor that broadcasts)."""
        skip, out, _ = self._preconditioning(sigma)
        return skip * sample + out * model_output

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, corrected: bool = False
    ) -> torch.Tensor:
        """The training target at `timesteps` (B,) of the run's timetable: the output that means x₀ = `sample`."""
        sigma = self.sigmas[self._indices(timesteps)].to(sample).reshape(-1, *[1] * (sample.ndim - 1))
        skip, out, scale = self._preconditioning(sigma)
        return ((sigma * scale) ** 2 * sample - skip * sigma * noise) / out

    def _told(self, sigma: torch.Tensor) -> torch.Tensor:
        return 0.25 * sigma.log()
