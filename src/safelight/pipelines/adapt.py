"""Schedulers that have only the familiar surface (a script's own, or another library's), driven by a copy per run."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError
from ..schedulers.base import Advance, Scheduler


def as_pure(scheduler: Any) -> Any:
    """`scheduler` itself where its steps are pure, else an adapter over it; raises `InputError` for anything else."""
    # A class of a script's own that replaces the familiar `step` wants that one run.
    if isinstance(scheduler, Scheduler) and type(scheduler).step.__module__.startswith("safelight."):
        return scheduler
    if not (callable(getattr(scheduler, "set_timesteps", None)) and callable(getattr(scheduler, "step", None))):
        raise InputError(f"{type(scheduler).__name__} is not a scheduler: it has no set_timesteps and step")
    return FamiliarScheduler(scheduler)


@dataclass(frozen=True)
class FamiliarPlan:
    """A run of a scheduler that keeps its state in itself: the copy made for this run."""

    scheduler: Any
    timesteps: torch.Tensor
    num_inference_steps: int
    init_noise_sigma: float
    options: dict[str, Any]

    def __len__(self) -> int:
        return len(self.timesteps)


class FamiliarScheduler:
    """`plan` and `advance` over a scheduler that has only `set_timesteps` and `step`."""

    def __init__(self, scheduler: Any):
        self.original = scheduler

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        device: Any = None,
        eta: float | None = None,
        generator: Any = None,
    ) -> FamiliarPlan:
        own = copy.deepcopy(self.original)
        name, accepted = type(own).__name__, inspect.signature(own.set_timesteps).parameters
        custom = {key: value for key, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
        for key in custom:
            if key not in accepted:
                raise InputError(f"{name} does not take custom {key}; leave {key} out")
        if custom:
            own.set_timesteps(device=device, **custom)
        else:
            own.set_timesteps(num_inference_steps, device=device)
        takes = inspect.signature(own.step).parameters
        options = {key: value for key, value in (("eta", eta), ("generator", generator)) if key in takes}
        first = float(getattr(own, "init_noise_sigma", 1.0))
        return FamiliarPlan(own, own.timesteps, num_inference_steps or len(own.timesteps), first, options)

    def initial_state(self, plan: FamiliarPlan) -> None:
        return None

    def scale_input(self, plan: FamiliarPlan, i: int, sample: torch.Tensor) -> torch.Tensor:
        scale = getattr(plan.scheduler, "scale_model_input", None)
        return sample if scale is None else scale(sample, plan.timesteps[i])

    def draw_noise(self, plan: FamiliarPlan, i: int, *like: Any) -> None:
        return None  # its steps draw their own

    def advance(
        self, plan: FamiliarPlan, i: int, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: Any
    ) -> Advance:
        output = plan.scheduler.step(model_output, plan.timesteps[i], sample, **plan.options)
        return Advance(output.prev_sample, None, getattr(output, "pred_original_sample", None))

    def at(self, plan: FamiliarPlan, i: int) -> Any:
        return plan.scheduler
