"""What solvers on the straight path x = (1 − σ)·x₀ + σ·ε share: a timetable (Esser et al. 2024, arXiv:2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import ConfigError, InputError, check_positive
from ..signatures import shared
from .base import Grid
from .prediction import Mix, reading, training_target
from .spacing import TIME_SHIFTS, chosen_grid, exponential, shifted, stretched_to, time_shifted
from .timetable import TimetableScheduler


class FlowScheduler(TimetableScheduler):
    """Base of the flow solvers: σ falls from 1 to 0, the network is told σ·num_train_timesteps and predicts ε − x₀.

    A run's σ are evenly spaced and then moved: by `shift`, or with `use_dynamic_shifting` by `mu` (an argument of
    `set_timesteps`, which pipelines derive from the image's size with `base_shift`, `max_shift`, `base_image_seq_len`
    and `max_image_seq_len`) in the way of `time_shift_type`; then stretched to end at `shift_terminal`; then replaced
    by a Karras, exponential or beta grid between the same ends. Custom `sigmas` go the same way, and custom `timesteps`
    may say what the network is told besides. With `invert_sigmas` σ rises from 0 (noise) to 1, and the network predicts
    x₀ − ε.

    Three defects of the reference, which `corrected` repairs: the smallest σ is shifted twice; custom `timesteps`
    without `sigmas` are told as given, while the σ at them are shifted; with `invert_sigmas`, x₀ and the noise level
    are read as without.
    """

    custom: ClassVar[tuple[str, ...]] = ("sigmas", "timesteps")
    timetable_options: ClassVar = {"mu": None}
    choices: ClassVar = {"time_shift_type": TIME_SHIFTS}
    _compatibles = ()

    def _set_up(self) -> None:
        self._check_settings()
        self._shift = self.config["shift"]
        ends = self._trained()[[-1, 0]].tolist()
        self.sigma_min, self.sigma_max = ends

    def _check_settings(self) -> None:
        super()._check_settings()
        settings = self._settings
        terminal = settings.get("shift_terminal")
        chosen_grid(settings)
        check_positive("shift", settings["shift"])
        if terminal is not None and not 0 <= terminal < 1:
            raise ConfigError(f"shift_terminal is {terminal!r}; a number in [0, 1) or None is needed")

    @property
    def shift(self) -> float:
        """The factor by which the σ of the next runs are shifted: the config's, unless `set_shift` said another."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Shift the σ of the runs that `set_timesteps` begins from now on by `shift`."""
        check_positive("shift", shift)
        self._shift = shift

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """`t` in [0, 1] (a number, an array, a tensor) shifted by `mu` and the power `sigma`, as the config says."""
        return time_shifted(t, mu, self.config["time_shift_type"], sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """Falling `t` stretched so that its last entry is `shift_terminal`."""
        return stretched_to(t, self.config["shift_terminal"])

    @shared
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        """Begin a new run with the timetable that `plan` makes of these arguments, its `timesteps` on `device`."""
        if mu is not None:
            options["mu"] = mu
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, **options)

    def _check_given(self, steps: int | None, arrays: Mapping[str, np.ndarray]) -> None:
        counts = {name: len(values) for name, values in arrays.items()}
        counts |= {} if steps is None else {"num_inference_steps": steps}
        if len(set(counts.values())) > 1:
            raise InputError(f"the timetable has {counts} entries; the numbers must be equal")

    def _trained(self) -> np.ndarray:
        """The σ that the network was trained on, falling, float32."""
        even = np.arange(len(self), 0, -1, dtype=np.float32) / np.float32(len(self))
        return even if self._settings.get("use_dynamic_shifting") else shifted(even, self._settings["shift"])

    def _training_grid(self, corrected: bool) -> Grid:
        sigmas = self._trained()
        return Grid(sigmas * len(self), len(self), np.append(sigmas, np.float32(0)), corrected=corrected)

    def _grid(self, steps: int, corrected: bool, mu: float | None = None) -> Grid:
        smallest = 1 / len(self) if corrected else self.sigma_min
        return self._told(self._moved(np.linspace(self.sigma_max, smallest, steps), mu), corrected)

    def _custom_grid(
        self,
        corrected: bool,
        timesteps: np.ndarray | None = None,
        sigmas: np.ndarray | None = None,
        mu: float | None = None,
    ) -> Grid:
        times = None if timesteps is None else timesteps.astype(np.float32)
        given = sigmas if times is None or sigmas is not None else times / np.float32(len(self))
        assert given is not None
        given = given.astype(np.float32)
        if given[0] > 1 or given[-1] < 0:
            wanted = "sigmas in [0, 1]" if times is None else f"timesteps in [0, {len(self)}]"
            raise InputError(f"the timetable goes from σ = {given[0]} to {given[-1]}; {wanted} are needed")
        return self._told(given if sigmas is None and corrected else self._moved(given, mu), corrected, times)

    def _moved(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        settings = self._settings
        if not settings.get("use_dynamic_shifting"):
            sigmas = shifted(sigmas, self._shift)
        elif mu is None:
            raise InputError("use_dynamic_shifting shifts by mu, which is missing; pass mu to set_timesteps")
        else:
            sigmas = self.time_shift(mu, 1.0, sigmas)
        if settings.get("shift_terminal"):
            sigmas = self.stretch_shift_to_terminal(sigmas)
        make = chosen_grid(settings)
        if make is exponential and sigmas[-1] <= 0:
            raise InputError("use_exponential_sigmas needs σ above 0; leave the 0 out, a run ends there anyway")
        return make(float(sigmas[-1]), float(sigmas[0]), len(sigmas)) if make else sigmas

    def _told(self, sigmas: np.ndarray, corrected: bool, times: np.ndarray | None = None) -> Grid:
        sigmas, end = sigmas.astype(np.float32), np.float32(0)
        if self._settings.get("invert_sigmas"):
            sigmas, end, times = 1 - sigmas, np.float32(1), None
        times = sigmas * len(self) if times is None else times
        return Grid(times, len(sigmas), np.append(sigmas, end), corrected=corrected)

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        return 1 - sigma, sigma

    @staticmethod
    def _rising(grid: Grid) -> bool:
        """Whether σ is to be read as the share of x₀ rather than of ε."""
        assert grid.sigmas is not None
        return grid.corrected and bool(grid.sigmas[-1] == 1)

    def _levels(self, grid: Grid) -> Sequence[tuple[float, float]]:
        levels = super()._levels(grid)
        return [(sigma, alpha) for alpha, sigma in levels] if self._rising(grid) else levels

    def _x0_readings(self, grid: Grid) -> list[Mix]:
        """How x₀ follows from x and y = ε − x₀ (x₀ − ε where σ rises) at each evaluation."""
        mixes = [reading("flow_prediction", alpha, sigma).x0 for alpha, sigma in self._levels(grid)]
        return [mix._replace(on_y=-mix.on_y) for mix in mixes] if self._rising(grid) else mixes

    def _noise_after(self, grid: Grid) -> list[float]:
        """The share of noise in x after each evaluation."""
        assert grid.sigmas is not None
        return (1 - grid.sigmas if self._rising(grid) else grid.sigmas)[1:].tolist()

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """`sample`: the network sees it as it is."""
        return sample

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor, corrected: bool = False
    ) -> torch.Tensor:
        """The noisy sample (1 − σ)·x₀ + σ·ε of `sample` at `timestep` (B,); the same as `add_noise`."""
        return self.add_noise(sample, noise, timestep, corrected)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Any = None, corrected: bool = False
    ) -> torch.Tensor:
        """The training target ε − x₀, the same at all timesteps."""
        return training_target("flow_prediction", sample, noise, 0.0, 0.0)
