"""The one denoising loop, shared by every pipeline: prepare, step, decode."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..configuration import check_known
from ..errors import InputError, NonFiniteError, check_choice
from ..images import OUTPUT_TYPES
from ..randomness import generators, randn_tensor
from .adapt import as_pure
from .base import DiffusionPipeline
from .events import RunView, StepEvent
from .guidance import Guidance

if TYPE_CHECKING:
    from ..schedulers.base import Plan, Scheduler
    from .film import Film

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


@dataclass(eq=False)
class Trajectory:
    """The state of one request between `prepare` and `decode`.

    `sample` is x_t at evaluation `index` of `plan`, (batch, channels, height, width). `conditioning` holds the
    tensors that the denoiser takes beside x_t and t, batch first; `negative` those of the negative pass where there
    is guidance. `generator` gives the noise of stochastic steps, `forward_options` reach the network as they are, and
    `settings` is what `decode` needs to know. Nothing here is shared with another run.
    """

    scheduler: Scheduler
    plan: Plan
    sample: torch.Tensor
    conditioning: Tensors = field(default_factory=dict)
    negative: Tensors | None = None
    guidance: Guidance = Guidance()  # noqa: RUF009 (frozen)
    generator: torch.Generator | list[torch.Generator] | None = None
    forward_options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    state: Any = None
    pred_original_sample: torch.Tensor | None = None
    interrupt: bool = False
    num_timesteps: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_timesteps = len(self.plan)
        if self.state is None:
            self.state = self.scheduler.initial_state(self.plan)

    # What scripts' callbacks read and set on "the pipeline" (see `events.RunView`).
    @property
    def guidance_scale(self) -> float:
        return self.guidance.scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        self.guidance = replace(self.guidance, scale=scale)

    @property
    def guidance_rescale(self) -> float:
        return self.guidance.rescale

    @guidance_rescale.setter
    def guidance_rescale(self, rescale: float) -> None:
        self.guidance = replace(self.guidance, rescale=rescale)

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.guidance.active and self.negative is not None

    @property
    def clip_skip(self) -> int | None:
        return self.settings.get("clip_skip")

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        return self.forward_options.get("cross_attention_kwargs")

    @cross_attention_kwargs.setter
    def cross_attention_kwargs(self, value: dict[str, Any] | None) -> None:
        self.forward_options = {**self.forward_options, "cross_attention_kwargs": value}

    @property
    def finished(self) -> bool:
        return self.interrupt or self.index >= self.num_timesteps

    @property
    def passes(self) -> list[Tensors]:
        """The conditionings of one step's forward: negative first, as the field stacks them."""
        if self.do_classifier_free_guidance:
            assert self.negative is not None
            return [self.negative, self.conditioning]
        return [self.conditioning]

    def network_input(self) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
        """Rows for the denoiser: x_t as it expects it, t (0-d), and the conditioning, all passes stacked."""
        scaled = self.scheduler.scale_input(self.plan, self.index, self.sample)
        timestep = self.plan.timesteps[self.index]
        passes = self.passes
        if len(passes) == 1:
            return scaled, timestep, passes[0]
        stacked = {name: torch.cat([one[name] for one in passes]) for name in passes[0]}
        return torch.cat([scaled] * len(passes)), timestep, stacked

    def advance(self, prediction: torch.Tensor, network: str) -> None:
        """Take one step with the denoiser's output for all passes; `network` names it in errors."""
        if self.do_classifier_free_guidance:
            prediction = self.guidance.combine(*prediction.chunk(2))
        noise = self.scheduler.draw_noise(self.plan, self.index, self.sample, self.generator, prediction.dtype)
        result = self.scheduler.advance(self.plan, self.index, prediction, self.sample, self.state, noise)
        self._check_finite(result.sample, prediction, network)
        self.sample, self.state, self.pred_original_sample = result
        self.index += 1

    def _check_finite(self, sample: torch.Tensor, prediction: torch.Tensor, network: str) -> None:
        # On a GPU reading a flag would wait for the device, so there `decode` looks at the picture instead.
        if sample.device.type != "cpu" or torch.isfinite(sample).all():
            return
        culprit = type(self.scheduler).__name__ if torch.isfinite(prediction).all() else network
        step, total = self.index + 1, self.num_timesteps
        advice = (
            "load it with dtype=torch.float32, or check its weights" if culprit == network else "use another scheduler"
        )
        raise NonFiniteError(f"{culprit} gave NaN or infinity at step {step} of {total}; {advice}")


class DenoisingPipeline(DiffusionPipeline):
    """What a pipeline family adds: `prepare` (request → Trajectory), `predict` (one forward) and `decode`.

    No call writes on the pipeline, its models or its scheduler, so one object serves any number of threads.
    """

    _network: ClassVar[str] = "unet"
    scheduler: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "prepare" in cls.__dict__ and "__call__" not in cls.__dict__:
            cls.__call__ = _call_like(cls.prepare)  # type: ignore[method-assign]

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]
    # Callback name -> name in `Trajectory.conditioning`.
    _conditioning_names: ClassVar[dict[str, str]] = {}

    def prepare(self, *args: Any, **kwargs: Any) -> Trajectory:
        raise NotImplementedError

    def predict(self, sample: torch.Tensor, timestep: torch.Tensor, conditioning: dict, options: dict) -> torch.Tensor:
        """The network's output for rows of x_t, (rows, channels, height, width), at t (0-d or one per row)."""
        return getattr(self, self._network)(sample, timestep, return_dict=False, **conditioning, **options)[0]

    def decode(self, trajectory: Trajectory, output_type: str = "pil", *, latents: torch.Tensor | None = None) -> Any:
        raise NotImplementedError

    def preview(self, latents: torch.Tensor) -> list:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, trajectories: Trajectory | Sequence[Trajectory]) -> None:
        """Advance each trajectory by one evaluation; those of the same shapes share one forward of the network."""
        runs = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
        for group in _same_shapes([run for run in runs if not run.finished]):
            inputs = [run.network_input() for run in group]
            if len(inputs) == 1:
                sample, timestep, conditioning = inputs[0]
            else:
                sample = torch.cat([rows for rows, _, _ in inputs])
                timestep = torch.cat([t.expand(len(rows)) for rows, t, _ in inputs])
                conditioning = {name: torch.cat([c[name] for _, _, c in inputs]) for name in inputs[0][2]}
            prediction = self.predict(sample, timestep, conditioning, group[0].forward_options)
            parts = prediction.split([len(rows) for rows, _, _ in inputs])
            for run, part in zip(group, parts, strict=True):
                run.advance(part, type(getattr(self, self._network)).__name__)

    def stream(self, *args: Any, trajectory: Trajectory | None = None, **kwargs: Any) -> Iterator[StepEvent]:
        """The run of `pipe(…)` step by step; takes `prepare`'s arguments and yields a `StepEvent` after every step.

        With `trajectory=`, from `prepare` or `resume`, the rest of that run instead.
        """
        if trajectory is None:
            check_known(f"{type(self).__name__}.stream", kwargs, inspect.signature(self.prepare).parameters)
            return self._run(self.prepare(*args, **kwargs))
        if args or kwargs:
            raise InputError("a trajectory is a request already; stream takes no other argument with it")
        return self._run(trajectory)

    def _run(self, trajectory: Trajectory) -> Iterator[StepEvent]:
        with self.progress_bar(total=len(trajectory.plan) - trajectory.index) as bar:
            while not trajectory.finished:
                index, timestep = trajectory.index, trajectory.plan.timesteps[trajectory.index]
                self.step(trajectory)
                bar.update()
                yield StepEvent(self, trajectory, index, timestep, trajectory.sample, trajectory.pred_original_sample)

    def __call__(
        self,
        *args: Any,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> Any:
        """Make pictures: `prepare`, then `step` to the end, then `decode`; the arguments are those of `prepare`, and:

        `output_type`: "pil", "np" (B, H, W, C in [0, 1]), "pt" (B, C, H, W in [0, 1]) or "latent".
        `return_dict=False` gives a tuple. `callback_on_step_end(pipe, index, timestep, tensors)` runs after each step
        with the tensors named in `callback_on_step_end_tensor_inputs` and returns a dict of those it replaces;
        `pipe._interrupt = True` in it ends the run early. Raises `InputError` for an invalid request and
        `NonFiniteError` rather than return a black picture.
        """
        check_known(type(self).__name__, kwargs, inspect.signature(type(self).__call__).parameters)
        self._check_call(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        return self.finish(
            self.prepare(*args, **kwargs), output_type, return_dict, callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip

    def finish(
        self,
        trajectory: Trajectory,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Take what is left of the steps of `trajectory`, from `prepare` or `resume`, and decode it.

        The other arguments and the result are those of `pipe(…)`.
        """
        names = self._check_call(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        view = RunView(self, trajectory)
        for event in self._run(trajectory):
            if callback_on_step_end is not None:
                given = {name: self._callback_tensor(trajectory, name) for name in names}
                returned = callback_on_step_end(view, event.index, event.timestep, dict(given)) or {}
                for name, tensor in given.items():
                    if returned.get(name) is not None and returned[name] is not tensor:
                        self._replace_tensor(trajectory, name, returned[name])
        result = self.decode(trajectory, output_type)
        return result if return_dict else tuple(getattr(result, f.name) for f in fields(result))

    def _check_call(self, output_type: str, callback: Any, tensor_inputs: Sequence[str]) -> Sequence[str]:
        """The tensors that the callback wants; raises `InputError` where there are no such, or no such output type."""
        check_choice("output_type", output_type, OUTPUT_TYPES, InputError)
        names = getattr(callback, "tensor_inputs", tensor_inputs)
        for name in names:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs, InputError)
        return names

    def save_run(self, trajectory: Trajectory, path: str | os.PathLike) -> None:
        """Write a run, begun or not, to the file `path` (safetensors with JSON in its metadata), atomically.

        `resume` goes on from there to the same picture, to the last bit on the same machine and libraries. The
        generators' states are saved too; for a run without one that still needs noise, that of torch's own generator.
        Raises `InputError` for what no such file can hold: a scheduler that is not one of Safelight's or has a function
        in its config, and objects in `forward_options` that are neither tensors nor plain values.
        """
        from .saved import save

        save(self, trajectory, path)

    def resume(self, path: str | os.PathLike) -> Trajectory:
        """The run in a file of `save_run`, on this pipeline's device; go on with `finish`, `stream` or `step`.

        Raises `RepositoryError` for a file that is missing, damaged, of a newer format or none of a run, and
        `InputError` where this pipeline is of another class than the one that saved it, or a component of another
        class, dtype or config. Weights are not compared.
        """
        from .saved import load

        return load(self, path)

    def film(self, *args: Any, frames: int = 8, **kwargs: Any) -> Film:
        """Make pictures and keep `frames` of the way from noise to picture; takes `prepare`'s arguments.

        The returned `Film` has the final `images`, a `strip()` to look at and `save(path)` for a strip or a GIF.
        """
        from .film import record

        return record(self, frames, *args, **kwargs)

    @staticmethod
    def _generator(
        seed: int | Sequence[int] | None, generator: torch.Generator | Sequence[torch.Generator] | None, count: int
    ) -> torch.Generator | list[torch.Generator] | None:
        """The source of noise for `count` images: image k of `seed` s has its own CPU generator, seeded s + k."""
        if seed is not None and generator is not None:
            raise InputError("seed and generator are both given; give one of them")
        if seed is not None:
            return generators(seed, count)
        if generator is None or isinstance(generator, torch.Generator):
            return generator
        if not isinstance(generator, list | tuple) or not all(isinstance(one, torch.Generator) for one in generator):
            raise InputError(f"generator is {generator!r}; a torch.Generator or a list of them is needed")
        if len(generator) != count:
            raise InputError(f"generator is a list of {len(generator)}, but {count} images are asked for")
        return list(generator)

    def _first_sample(
        self,
        plan: Plan,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """x_T: `latents` or fresh noise of `shape`, scaled to the plan's first noise level."""
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=dtype)
        elif not isinstance(latents, torch.Tensor) or tuple(latents.shape) != tuple(shape):
            found = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise InputError(f"latents are {found}; this request needs a tensor of shape {tuple(shape)}")
        elif not torch.isfinite(latents).all():
            raise InputError("latents hold NaN or infinity")
        return latents.to(self.device) * plan.init_noise_sigma

    def _callback_tensor(self, trajectory: Trajectory, name: str) -> torch.Tensor | None:
        if name == "latents":
            return trajectory.sample
        key = self._conditioning_names[name.removeprefix("negative_")]
        if name.startswith("negative_"):
            return trajectory.negative[key] if trajectory.negative else None
        return torch.cat([one[key] for one in trajectory.passes])

    def _replace_tensor(self, trajectory: Trajectory, name: str, value: torch.Tensor) -> None:
        if name == "latents":
            trajectory.sample = value
            return
        key = self._conditioning_names[name.removeprefix("negative_")]
        targets = trajectory.passes
        if name.startswith("negative_"):
            targets = [trajectory.negative] if trajectory.negative is not None else []
        # Scripts hand back the stacked negative and positive rows, or one of them after switching guidance off.
        for target, part in zip(targets, value.chunk(max(1, len(targets))), strict=True):
            target[key] = part

    def _plan(
        self, scheduler: Scheduler | None, num_inference_steps: int | None, **wanted: Any
    ) -> tuple[Scheduler, Plan]:
        """This run's scheduler (the pipeline's own unless one is given) and its plan.

        `timesteps` and `sigmas` are errors where the scheduler does not take them; solver options that it does not have
        (`eta`, …) are dropped with a warning, as scripts pass them to any scheduler.
        """
        pure = as_pure(self.scheduler if scheduler is None else scheduler)
        accepted = inspect.signature(pure.plan).parameters
        options = {name: value for name, value in wanted.items() if value is not None}
        if options.get("timesteps") is not None and options.get("sigmas") is not None:
            raise InputError("timesteps and sigmas are both given; give one of them")
        for name in [name for name in options if name not in accepted]:
            value = options.pop(name)
            if name in ("timesteps", "sigmas"):
                raise InputError(f"{type(pure).__name__} does not take custom {name}; leave {name} out")
            if name != "generator" and value:
                logger.warning("%s has no %s; %s=%r has no effect", type(pure).__name__, name, name, value)
        custom = options.get("timesteps") is not None or options.get("sigmas") is not None
        return pure, pure.plan(None if custom else num_inference_steps, **options)


def _call_like(prepare: Callable) -> Callable:
    """The shared `__call__`, showing `prepare`'s arguments before its own to `help()` and to scripts that look."""
    shared = DenoisingPipeline.__call__
    call = types.FunctionType(shared.__code__, shared.__globals__, shared.__name__, None, shared.__closure__)
    functools.update_wrapper(call, shared)
    del call.__wrapped__  # type: ignore[attr-defined]
    call.__kwdefaults__ = dict(shared.__kwdefaults__ or {})
    own = [p for p in inspect.signature(shared).parameters.values() if p.kind is p.KEYWORD_ONLY]
    call.__signature__ = inspect.Signature([*inspect.signature(prepare).parameters.values(), *own])  # type: ignore[attr-defined]
    return call


def _same_shapes(runs: list[Trajectory]) -> list[list[Trajectory]]:
    """Runs grouped so that each group can share one forward."""
    if len(runs) == 1:
        return [runs]
    groups: dict[Any, list[Trajectory]] = {}
    for run in runs:
        tensors = {"": run.sample, **run.conditioning}
        shapes = tuple((name, tensor.shape[1:], tensor.dtype, tensor.device) for name, tensor in tensors.items())
        options = id(run) if any(value is not None for value in run.forward_options.values()) else None
        groups.setdefault((shapes, options), []).append(run)
    return list(groups.values())
