"""Schedulers: pure inside (`plan`, `advance`), familiar outside (`set_timesteps`, `step`), both written once.

A solver is a class with a config, `_rows` (its coefficients for a timetable) and `_advance` (one step with them).
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..configuration import ConfigMixin, FrozenConfig, check_known, init_parameters
from ..errors import InputError, check_choice, check_count
from ..randomness import randn_tensor
from ..signatures import shared
from .familiar import FamiliarSurface, SchedulerOutput
from .noise import make_betas, signal_and_noise
from .plan import Advance, Grid, Plan
from .prediction import PREDICTION_TYPES, Reading, limiter, reading, refuse_singular
from .spacing import SPACINGS, descending, spaced

__all__ = ["COMPATIBLE_NAMES", "Advance", "Grid", "Plan", "Scheduler", "SchedulerMixin", "SchedulerOutput"]

# Schedulers whose configs convert into each other, whether or not all are here.
# fmt: off
COMPATIBLE_NAMES = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler", "UniPCMultistepScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler",
)
# fmt: on

LEARNED_VARIANCES = ("learned", "learned_range")


class SchedulerMixin(ConfigMixin):
    """What every scheduler has, also a script's own class: a config that is stored, loaded and converted."""

    config_name = "scheduler_config.json"
    has_compatibles = True
    _compatibles: ClassVar[Sequence[str]] = ()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, subfolder: str | None = None,
        return_unused_kwargs: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Load from `scheduler_config.json` in a folder or repository; `kwargs`: download options, config overrides.

        Raises `RepositoryError` where there is no such file and `UnknownArgumentError` for an override that is no
        argument of the class. With `return_unused_kwargs` the latter are returned: `(scheduler, unused)`.
        """
        if subfolder is not None:
            kwargs["subfolder"] = subfolder
        config, overrides = cls.load_config(pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs)
        return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write `scheduler_config.json` into `save_directory`, atomically."""
        self.save_config(save_directory, **kwargs)

    @property
    def compatibles(self) -> list[type]:
        """The classes that can be built from this scheduler's config, its own first."""
        return self._compatible_classes()

    @classmethod
    def _compatible_classes(cls) -> list[type]:
        package = importlib.import_module(__name__.split(".")[0])
        present = [name for name in cls._compatibles if name != cls.__name__ and name in package.__all__]
        return [cls, *(getattr(package, name) for name in present)]

    @classmethod
    def _compatible_names(cls) -> list[str]:
        return [related.__name__ for related in cls._compatible_classes()]


class Scheduler(FamiliarSurface, SchedulerMixin):
    """Base of the solvers; nothing of the pure surface changes the object, the familiar one keeps one run on it.

    A subclass has a constructor that calls `_set_up`, `_rows(grid, **options)` and, unless its rows are `plan.Row`s,
    `_advance(row, y, x, state, noise)`. It lists its run options with their defaults in `options`, those that shape the
    timetable (arguments of `_grid`) in `timetable_options`, and the custom timetables that it takes in `custom`.
    """

    order: ClassVar[int] = 1
    _anywhere = False  # whether a step needs only t and its length, so that scripts may take one at any t
    _learned = False  # whether the network's output has a second half, of the variance
    _reads_noise = False  # whether the solver combines ε instead of x₀
    _memory = 1  # how many outputs a step combines
    # What config entries may be, checked where the class has them.
    choices: ClassVar[Mapping[str, Sequence[Any]]] = {"prediction_type": PREDICTION_TYPES, "timestep_spacing": SPACINGS}
    _compatibles: ClassVar[Sequence[str]] = COMPATIBLE_NAMES
    _arguments: ClassVar[tuple[str, ...]] = ()  # of the constructor, and of those of the bases

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        classes = [base for base in cls.__mro__ if "__init__" in base.__dict__]
        cls._arguments = tuple(dict.fromkeys(name for base in classes for name in init_parameters(base)))

    def _set_up(self) -> None:
        """Check the config and make the tables of the training noise: `betas`, `alphas`, `alphas_cumprod`."""
        self._check_settings()
        self.betas = make_betas(self._settings)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)

    def _check_settings(self) -> None:
        settings = self._settings
        for name, choices in self.choices.items():
            if name in settings:
                check_choice(name, settings[name], choices)
        check_count("num_train_timesteps", settings["num_train_timesteps"])
        self._limit = limiter(settings)
        self._learned = settings.get("variance_type") in LEARNED_VARIANCES
        self._memory = settings.get("solver_order", 1)

    @property
    def _settings(self) -> dict[str, Any]:
        """The config without the entries that it only carries for the way back to another class."""
        config = self.config
        return {name: config[name] for name in self._arguments if name in config}

    def register_to_config(self, **values: Any) -> None:
        """Change config entries in place, as training scripts do with `prediction_type`; the run follows."""
        super().register_to_config(**values)
        if "_limit" in self.__dict__:
            self._check_settings()
            if self._active is not None:
                self._active = self._again(self._active, self._active.options)

    @shared
    def plan(
        self, num_inference_steps: int | None = None, *, timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None, device: torch.device | str | None = None, corrected: bool = False,
        **options: Any,
    ) -> Plan:  # fmt: skip
        """The timetable of one run: `num_inference_steps`, given `timesteps` or `sigmas`, or every training timestep.

        `options` are the solver's own, such as η. `corrected` repairs what is a defect in the reference (each class
        says what); off, the numbers are the reference's.
        Raises `InputError` for a timetable that cannot be, `UnknownArgumentError` for an option that the solver lacks.
        """
        custom = {"timesteps": timesteps, "sigmas": sigmas}
        arrays = {name: self._given_values(name, values) for name, values in custom.items() if values is not None}
        known = ("corrected", *self.custom, *self.timetable_options, *self.options)
        check_known(f"{type(self).__name__}.plan", [*arrays, *options], known)
        self._check_given(num_inference_steps, arrays)
        shape = {name: options.pop(name, default) for name, default in self.timetable_options.items()}
        if arrays:
            grid = self._custom_grid(corrected, **arrays, **shape)
        elif num_inference_steps is not None:
            grid = self._grid(_step_count(num_inference_steps), corrected, **shape)
        else:
            grid = self._training_grid(corrected)
        return self._assemble(grid, {**self.options, **options}, device)

    def _assemble(self, grid: Grid, options: dict[str, Any], device: Any = None) -> Plan:
        for name, value in options.items():
            _check_option(name, value, self.options[name])
        rows, needs_noise = self._rows(grid, **options)
        return Plan(
            timesteps=torch.from_numpy(np.ascontiguousarray(grid.times)).to(device),
            times=tuple(grid.times.tolist()),
            levels=tuple(self._levels(grid)),
            rows=tuple(rows),
            needs_noise=tuple(needs_noise),
            order=self.order,
            init_noise_sigma=self._first_sigma(grid),
            options=FrozenConfig(options),
            grid=grid,
        )

    def _again(self, plan: Plan, options: Mapping[str, Any]) -> Plan:
        """`plan` made anew, with these options and the present config."""
        again = self._assemble(plan.grid, dict(options), plan.timesteps.device)
        return again.start_at(plan.begin) if plan.begin else again

    def initial_state(self, plan: Plan) -> Any:
        """What the solver remembers before its first step (None for those that remember nothing)."""
        return None

    def scale_input(self, plan: Plan, i: int, sample: torch.Tensor) -> torch.Tensor:
        """What the network sees of `sample` at evaluation `i`."""
        return sample

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """The `noise` that `advance` takes at evaluation `i`: standard normal from `generator`, or None.

        `generator` is one, or a list with one per row of `sample`; `dtype` is the sample's unless given.
        """
        if not plan.needs_noise[i]:
            return None
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype or sample.dtype)

    def advance(
        self, plan: Plan, i: int, model_output: torch.Tensor, sample: torch.Tensor, state: Any = None,
        noise: torch.Tensor | None = None,
    ) -> Advance:  # fmt: skip
        """One step from evaluation `i`, with no side effect and without reading a tensor's value.

        `model_output` and `sample` are (B, C, …); `state` is what the step before gave back (None: a run starts here);
        `noise`, of the sample's shape, is needed where `plan.needs_noise[i]`.
        Raises `InputError` past the plan's end, for mismatched shapes, and for missing noise.
        """
        row = self._row(plan, i)
        for name, value in (("model_output", model_output), ("sample", sample)):
            if not isinstance(value, torch.Tensor):
                hint = "; pass its .sample" if hasattr(value, "sample") else ""
                raise InputError(f"{name} is of type {type(value).__name__}, but a tensor is needed{hint}")
        if model_output.shape != self._output_shape(sample):
            raise InputError(
                f"model_output has shape {tuple(model_output.shape)}, but for a sample of {tuple(sample.shape)} "
                f"{type(self).__name__} needs {tuple(self._output_shape(sample))}"
            )
        if state is None:
            state = self.initial_state(plan)
        if noise is None and plan.needs_noise[i]:
            raise InputError(f"step {i} of this plan adds noise; pass noise of shape {tuple(sample.shape)}")
        return self._advance(row, model_output, sample, state, noise)

    @staticmethod
    def _row(plan: Plan, i: int) -> Any:
        # Looked up here, so that a step stays in few files; `Plan.row` says what is wrong with `i`.
        return plan.rows[i] if 0 <= i < len(plan.rows) else plan.row(i)

    def implied_output(self, plan: Plan, i: int, sample: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The model output that means x₀ = `original` at evaluation `i` of `sample`, before any clipping.

        It lets a formula, or a network of another prediction type, drive any solver. `sample` and `original` are
        (B, C, …); a learned variance comes out as zeros.
        """
        output = self._row(plan, i).x0.solve(sample, original)
        return torch.cat([output, torch.zeros_like(output)], dim=1) if self._learned else output

    def noised(self, plan: Plan, i: int, original: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`original` x₀ at the noise level of evaluation `i`: α·x₀ + σ·ε, as `advance` wants it there."""
        self._row(plan, i)
        alpha, sigma = plan.levels[i]
        return alpha * original + sigma * noise

    def at(self, plan: Plan, i: int) -> Any:
        """A copy on the familiar surface that runs `plan` and stands before evaluation `i`."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._install(plan)
        copy._step_index = i
        return copy

    # What a solver provides, or inherits from its family.

    # (grid, **options) -> the solver's coefficients, one row per evaluation, and which evaluations need noise
    _rows: Callable[..., tuple[Sequence[Any], Sequence[bool]]]

    def _read(self, row: Any, model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x₀, and what the solver combines."""
        if self._learned:
            model_output = model_output[:, : sample.shape[1]]
        x0 = row.x0(sample, model_output)
        if self._limit is not None:
            x0 = model_output = self._limit(x0)
        return x0, row.eps(sample, model_output) if self._reads_noise else x0

    def _advance(
        self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        """One step with a row's coefficients: `plan.Row`'s, unless the solver has a way of its own."""
        x0, output = self._read(row, model_output, sample)
        outputs = (output, *(state or ()))[: self._memory]
        step = row.steps[min(len(outputs), len(row.steps)) - 1]
        previous = step(sample, outputs, noise).to(torch.promote_types(sample.dtype, output.dtype))
        return Advance(previous, outputs if self._memory > 1 else None, x0)

    _given_values = staticmethod(descending)  # (name, values of a custom timetable) -> array

    def _check_given(self, steps: int | None, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise `InputError` where the number of steps and the custom timetables contradict each other."""
        if len(arrays) + (steps is not None) > 1:
            raise InputError("num_inference_steps, timesteps and sigmas say the same thing; give one of them")

    def _output_shape(self, sample: torch.Tensor) -> torch.Size:
        """The shape of the network's output: twice the channels where it also learned the variance."""
        if not self._learned:
            return sample.shape
        batch, channels, *rest = sample.shape
        return torch.Size((batch, 2 * channels, *rest))

    def _training_grid(self, corrected: bool) -> Grid:
        return Grid(np.arange(len(self))[::-1], len(self), corrected=corrected, exact=corrected)

    def _grid(self, steps: int, corrected: bool) -> Grid:
        """`steps` integer training timesteps, for solvers that step between them."""
        settings = self._settings
        train, offset = len(self), settings["steps_offset"]
        if steps > train:
            raise InputError(f"num_inference_steps is {steps}; at most num_train_timesteps={train} are possible")
        times = spaced(settings["timestep_spacing"], train, steps, offset, corrected).round().astype(np.int64)
        if times.max() >= train:
            raise InputError(
                f"{steps} steps with steps_offset={offset} reach timestep {times.max()}, but the last one trained is "
                f"{train - 1}; use fewer steps or steps_offset=0"
            )
        return Grid(times, steps, corrected=corrected, exact=corrected)

    def _custom_grid(self, corrected: bool, timesteps: np.ndarray) -> Grid:
        times = timesteps.astype(np.int64)
        if (times != timesteps).any() or times[-1] < 0 or times[0] >= len(self):
            raise InputError(f"timesteps are {timesteps.tolist()}; whole numbers in [0, {len(self)}) are needed")
        return Grid(times, len(times), corrected=corrected, exact=True)

    def _levels(self, grid: Grid) -> Sequence[tuple[float, float]]:
        alpha, sigma = signal_and_noise(self.alphas_cumprod)
        return [(alpha[t], sigma[t]) for t in grid.times.tolist()]

    def _first_sigma(self, grid: Grid) -> float:
        return 1.0

    def _readings(self, grid: Grid) -> list[Reading]:
        """How x₀ and ε follow from sample and model output at each evaluation."""
        readings = [reading(self.config["prediction_type"], alpha, sigma) for alpha, sigma in self._levels(grid)]
        settings = self._settings
        clipped = bool(settings.get("clip_sample")) and not settings.get("thresholding")
        refuse_singular(readings, clipped, grid.times.tolist())
        return readings

    def _cumulative(self, times: np.ndarray, beyond: torch.Tensor | float | None = None) -> torch.Tensor:
        """ᾱ (float32, on the CPU) at integer `times`, and `beyond` where they are negative."""
        index = torch.from_numpy(np.ascontiguousarray(times))
        found = self.alphas_cumprod.cpu()[index if beyond is None else index.clamp(min=0)]
        return found if beyond is None else torch.where(index < 0, torch.as_tensor(beyond).cpu(), found)

    def _off_timetable(self, run: Plan, timestep: Any) -> Plan:
        if self._anywhere and isinstance(timestep, int) and 0 <= timestep < len(self):
            return self._assemble(Grid(np.array([timestep]), run.num_inference_steps), dict(run.options))
        return super()._off_timetable(run, timestep)


def _step_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"num_inference_steps is {value!r}; a whole number of at least 1 is needed")
    return int(value)


def _check_option(name: str, value: Any, default: Any) -> None:
    """Raise `InputError` unless `value` is of the kind of `default`: a flag, or a number that is not NaN."""
    is_flag = isinstance(value, bool)
    if isinstance(default, bool) and not is_flag:
        raise InputError(f"{name} is {value!r}; True or False is needed")
    if isinstance(default, float) and (is_flag or not isinstance(value, (int, float)) or math.isnan(value)):
        raise InputError(f"{name} is {value!r}; a number is needed")
