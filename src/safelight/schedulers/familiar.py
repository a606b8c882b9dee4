"""The surface that scripts know (`set_timesteps`, `timesteps`, `step`, `add_noise`, …), over the pure one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..configuration import check_known
from ..errors import InputError
from ..outputs import Output
from ..signatures import shared, show
from .plan import Advance, Plan


@dataclass
class SchedulerOutput(Output):
    """What `step` returns: x at the next noise level, and the estimate of x₀ where the solver makes one."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class FamiliarSurface:
    """Keeps one run of a scheduler on the object, as scripts expect; all mathematics is in `plan` and `advance`."""

    options: ClassVar[dict[str, Any]] = {}
    timetable_options: ClassVar[dict[str, Any]] = {}
    custom: ClassVar[tuple[str, ...]] = ("timesteps",)
    # Arguments of `step` after the solver's options, in their positional order.
    _step_arguments: ClassVar[dict[str, Any]] = {"generator": None, "return_dict": True}

    num_inference_steps: int | None = None
    betas: torch.Tensor
    alphas: torch.Tensor
    alphas_cumprod: torch.Tensor

    # The run. Defaults of the class, so that a constructor has nothing to call.
    _active: Plan | None = None
    _timesteps: torch.Tensor | None = None
    _step_index: int | None = None
    _begin_index: int | None = None
    _state: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Scripts and pipelines read signatures to learn what a scheduler takes, so each class shows its own.
        steps, custom = {"num_inference_steps": None}, dict.fromkeys(cls.custom)
        further = {**cls.timetable_options, "corrected": False, **cls.options}
        show(cls, "plan", steps, {**custom, "device": None, **further})
        show(cls, "set_timesteps", {**steps, "device": None, **custom}, further)
        tensors = dict.fromkeys(("model_output", "timestep", "sample"), inspect.Parameter.empty)
        show(cls, "step", {**tensors, **cls.options, **cls._step_arguments}, {})

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]  # type: ignore[attr-defined]

    @shared
    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None, sigmas: Sequence[float] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """Begin a new run with the timetable that `plan` makes of these arguments, its `timesteps` on `device`."""
        if num_inference_steps is None and timesteps is None and sigmas is None:
            raise InputError(f"{type(self).__name__}.set_timesteps needs num_inference_steps or a custom timetable")
        arguments = {"device": device, "timesteps": timesteps, "sigmas": sigmas, **options}
        self._install(self.plan(num_inference_steps, **arguments))  # type: ignore[attr-defined]

    def _install(self, plan: Plan) -> None:
        self._active, self._timesteps, self.num_inference_steps = plan, self._shown(plan), plan.num_inference_steps
        self._step_index = self._begin_index = self._state = None

    def _run(self) -> Plan:
        """The plan of the run; until `set_timesteps`, every training timestep."""
        if self._active is None:
            self._active = self.plan()  # type: ignore[attr-defined]
            self._timesteps = self._shown(self._active)
        return self._active

    def _shown(self, plan: Plan) -> torch.Tensor:
        """What `timesteps` shows of the run."""
        return plan.timesteps

    def _shown_times(self, plan: Plan) -> tuple[float, ...]:
        """The entries of `timesteps` that `step` takes, as numbers."""
        return plan.times

    @property
    def timesteps(self) -> torch.Tensor:
        """What the network is told, one entry per evaluation."""
        self._run()
        assert self._timesteps is not None
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: torch.Tensor) -> None:
        if torch.as_tensor(value).tolist() != self._shown(self._run()).tolist():
            raise InputError("timesteps can be moved or cast, not changed; use set_timesteps(timesteps=…)")
        self._timesteps = torch.as_tensor(value).contiguous()

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that a run starts from."""
        return self._run().init_noise_sigma

    @property
    def step_index(self) -> int | None:
        """The evaluation that comes next, or None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The evaluation that the run starts at, if `set_begin_index` said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which evaluation the run starts, for runs from a partly noisy sample."""
        self._run().row(begin_index)
        self._begin_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """What the network sees of `sample` at `timestep` (one of `timesteps`)."""
        return sample

    @shared
    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *positional: Any, **given: Any
    ) -> Any:
        """One step of the run kept on this object, from `timestep` (one of `timesteps`) to the next.

        `model_output` and `sample` are (B, C, …). Noise comes from `generator` (one, or a list with one per row).
        Returns a `SchedulerOutput`, or a tuple with `return_dict=False`. Raises `InputError` for a timestep outside the
        timetable, `UnknownArgumentError` for an option that the solver lacks.
        """
        if positional:
            given |= dict(zip((*self.options, *self._step_arguments), positional, strict=False))
            return self.step(model_output, timestep, sample, **given)
        extra = {name: given.pop(name, default) for name, default in self._step_arguments.items()}
        run = self._with_options(given) if given else self._run()
        plan, i = self._locate(run, timestep)
        generator, noise = extra.get("generator"), extra.get("variance_noise")
        if noise is None:
            dtype = getattr(model_output, "dtype", None)  # what is no tensor, `advance` refuses
            noise = self.draw_noise(plan, i, sample, generator, dtype)  # type: ignore[attr-defined]
        elif generator is not None:
            raise InputError("generator and variance_noise are both given; give one of them")
        state = extra.get("pred_original_sample")  # which a solver may be told instead of reading it
        if state is not None and state.shape != sample.shape:
            raise InputError(f"pred_original_sample has shape {tuple(state.shape)}, but sample {tuple(sample.shape)}")
        if state is None and plan is run and i == self._step_index:
            state = self._state
        result = self.advance(plan, i, model_output, sample, state, noise)  # type: ignore[attr-defined]
        if plan is run:
            self._state, self._step_index = result.state, i + 1
        output = self._outcome(result)
        return output if extra["return_dict"] else output.to_tuple()

    def _outcome(self, result: Advance) -> Output:
        """What `step` returns of a pure step's result."""
        return SchedulerOutput(result.sample, result.pred_original_sample)

    def _with_options(self, options: Mapping[str, Any]) -> Plan:
        """The run's plan, made again if a script passes `step` other options than before."""
        run = self._run()
        if all(run.options.get(name, run) == value for name, value in options.items()):
            return run
        check_known(f"{type(self).__name__}.step", options, (*self.options, *self._step_arguments))
        self._active = self._again(run, {**run.options, **options})  # type: ignore[attr-defined]
        return self._active

    def _locate(self, run: Plan, timestep: Any) -> tuple[Plan, int]:
        """The plan and the evaluation in it that `timestep` means: of the run, or of a plan made for this step alone.

        No value is read where `timestep` is a view of our own `timesteps` (what a loop over them yields): the place in
        memory tells which.
        """
        if self._step_index is None and self._begin_index is not None:
            return run, self._begin_index
        expected, times = self._step_index or 0, self._shown_times(run)
        if isinstance(timestep, torch.Tensor):
            table = self.timesteps
            offset = timestep.data_ptr() - table.data_ptr()
            if not any(timestep.stride()) and 0 <= offset < table.nbytes:  # one value, perhaps expanded over rows
                return run, offset // table.itemsize
            if timestep.numel() != 1:
                raise InputError(f"timestep has shape {tuple(timestep.shape)}; step takes one timestep for all rows")
            if timestep.itemsize < run.timesteps.itemsize:
                times = tuple(torch.tensor(times).to(timestep.dtype).tolist())
            timestep = timestep.item()
        if expected < len(times) and times[expected] == timestep:
            return run, expected
        name, found = type(self).__name__, [i for i, time in enumerate(times) if time == timestep]
        if isinstance(timestep, int) and isinstance(times[0], float):
            raise InputError(f"timestep is the integer {timestep}, perhaps a loop index; pass one of {name}.timesteps")
        # A run that starts where a timestep stands twice starts at the second, whose step goes on to the next one.
        first = found[1:2] if self._step_index is None else [i for i in found if i > expected][:1]
        return (run, [*first, *found][0]) if found else (self._off_timetable(run, timestep), 0)

    def _off_timetable(self, run: Plan, timestep: Any) -> Plan:
        """A plan of one step for a timestep that is not in the timetable, for solvers that can; else `InputError`."""
        span, name = f"{run.times[0]} … {run.times[-1]}", type(self).__name__
        raise InputError(f"timestep {timestep} is not in this run's timetable ({span}); pass one of {name}.timesteps")

    def index_for_timestep(self, timestep: Any, schedule_timesteps: torch.Tensor | None = None) -> int:
        """The evaluation at `timestep` (of the run, or of another timetable); the second one where it stands twice."""
        value = timestep.item() if isinstance(timestep, torch.Tensor) else timestep
        times = self._shown_times(self._run()) if schedule_timesteps is None else schedule_timesteps.tolist()
        found = [i for i, time in enumerate(times) if time == value]
        if not found:
            raise InputError(f"timestep {value} is not in the timetable ({times[0]} … {times[-1]})")
        return found[1] if len(found) > 1 else found[0]

    def previous_timestep(self, timestep: Any) -> Any:
        """The timestep after `timestep` in the run's timetable, or −1 after the last."""
        i = self.index_for_timestep(timestep)
        return self.timesteps[i + 1] if i + 1 < len(self.timesteps) else torch.tensor(-1)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, corrected: bool = False
    ) -> torch.Tensor:
        """The noisy sample √ᾱ·x₀ + √(1 − ᾱ)·ε that a network is trained on (Ho et al. 2020, eq. 4).

        `original_samples` and `noise` are (B, …), `timesteps` (B,) whole numbers in [0, num_train_timesteps).
        ᾱ is rounded to the samples' dtype first, which in half precision changes small noise levels; `corrected`
        rounds last.
        """
        alpha, sigma = self._training_level(original_samples, timesteps, corrected)
        return alpha * original_samples + sigma * noise

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, corrected: bool = False
    ) -> torch.Tensor:
        """The training target √ᾱ·ε − √(1 − ᾱ)·x₀ of v-prediction (Salimans & Ho 2022, app. D); as for `add_noise`."""
        alpha, sigma = self._training_level(sample, timesteps, corrected)
        return alpha * noise - sigma * sample

    def _training_level(self, like: torch.Tensor, timesteps: Any, corrected: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if "alphas_cumprod" not in self.__dict__:
            raise InputError(f"{type(self).__name__} has no betas, from which a training target would follow")
        index = torch.as_tensor(timesteps)
        if index.device.type == "cpu":
            wrong = index[(index < 0) | (index >= len(self)) | (index != index.floor())]
            if wrong.numel():
                raise InputError(f"timestep {wrong[0].item()} is not a whole number in [0, {len(self)})")
        self.alphas_cumprod = self.alphas_cumprod.to(like.device)  # moved once, not at every training step
        return self._spread(self.alphas_cumprod, index.to(like.device).long(), like, corrected)

    @staticmethod
    def _spread(
        alphas_cumprod: torch.Tensor, index: Any, like: torch.Tensor, corrected: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """√ᾱ and √(1 − ᾱ) at `index`, shaped to scale the rows of `like`."""
        chosen = (alphas_cumprod if corrected else alphas_cumprod.to(like.dtype))[index]
        chosen = chosen.reshape(-1, *[1] * (like.ndim - 1))
        return (chosen**0.5).to(like.dtype), ((1 - chosen) ** 0.5).to(like.dtype)
