"""What consumers of a run see: the event of each step, and the view of the run that a callback receives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .denoise import DenoisingPipeline, Trajectory

# What a callback finds on "the pipeline" and may set there; it belongs to the run, not to the shared object.
_RUN_ATTRIBUTES = (
    "guidance_scale",
    "guidance_rescale",
    "do_classifier_free_guidance",
    "clip_skip",
    "cross_attention_kwargs",
    "num_timesteps",
    "interrupt",
)


class RunView:
    """What a callback receives: reads like the pipeline, and keeps what is set on it to this run."""

    def __init__(self, pipeline: DenoisingPipeline, trajectory: Trajectory):
        self.__dict__.update(_view_of=pipeline, _trajectory=trajectory)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._view_of)

    @property
    def scheduler(self) -> Any:
        """This run's scheduler on the familiar surface: a copy that stands at the current step."""
        return self._trajectory.scheduler.at(self._trajectory.plan, self._trajectory.index)

    def __getattr__(self, name: str) -> Any:
        bare = name.removeprefix("_")
        return getattr(self._trajectory, bare) if bare in _RUN_ATTRIBUTES else getattr(self._view_of, name)

    def __setattr__(self, name: str, value: Any) -> None:
        bare = name.removeprefix("_")
        if bare in _RUN_ATTRIBUTES:
            setattr(self._trajectory, bare, value)
        else:
            self.__dict__[name] = value


@dataclass(frozen=True)
class StepEvent:
    """One finished step, as `pipe.stream(…)` yields it.

    `index` counts from 0; `timestep` is the network's t (0-d tensor); `latents` is the sample after the step and
    `pred_original_sample` the solver's current estimate of x₀ (None where the solver has none).
    """

    pipeline: DenoisingPipeline
    trajectory: Trajectory
    index: int
    timestep: torch.Tensor
    latents: torch.Tensor
    pred_original_sample: torch.Tensor | None

    @property
    def progress(self) -> float:
        return (self.index + 1) / len(self.trajectory.plan)

    @property
    def preview(self) -> list:
        """A cheap picture (PIL, one per image) of where the run is heading."""
        best = self.latents if self.pred_original_sample is None else self.pred_original_sample
        return self.pipeline.preview(best)

    def decode(self, output_type: str = "pil") -> Any:
        """The full decoding of `latents`; after the last step this is the result of the run."""
        return self.pipeline.decode(self.trajectory, output_type, latents=self.latents)

    def save(self, path: str | os.PathLike) -> None:
        """Write the run, as far as it has come, to a file that `pipeline.resume` reads."""
        self.pipeline.save_run(self.trajectory, path)
