"""Trajectories against those solvers of diffusers that do not read every prediction type."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from .sampling import Run
from .trajectories import Config, Reason, TrajectoryParity

SIGMA_SPACINGS = ["linspace", "leading", "trailing"]
FEWER = {"num_inference_steps": 10, "num_train_timesteps": 150}


class ReadAsVelocity:
    """A scheduler of diffusers that reads v, made to take predictions of x₀ as though it read them."""

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def sigma(self) -> torch.Tensor:
        """σ of this evaluation."""
        theirs = self.scheduler
        if getattr(theirs, "state_in_first_order", True):
            return theirs.sigmas[theirs.step_index]
        if hasattr(theirs, "mid_point_sigma"):
            return theirs.mid_point_sigma
        return theirs.sigmas_interpol[theirs.step_index - isinstance(theirs, diffusers.KDPM2AncestralDiscreteScheduler)]

    def step(self, y: torch.Tensor, t: Any, x: torch.Tensor, **options: Any) -> Any:
        sigma = self.sigma()
        velocity = (x / (sigma**2 + 1) - y) * ((sigma**2 + 1) ** 0.5 / sigma)
        return self.scheduler.step(velocity, t, x, **options)


class SigmaParity(TrajectoryParity):
    """What theirs does not read, it is given as v."""

    def run(self, scheduler: Any, step: Config, config: Config) -> Run:
        return super().run(ReadAsVelocity(scheduler) if config.get("as_velocity") else scheduler, step, config)


def no_sample(*names: str) -> Reason:
    return Reason(
        "diffusers does not implement prediction_type='sample' here; the one table gives it",
        lambda name, c: name in names and c["prediction_type"] == "sample",
        "is right",
        {"prediction_type": "v_prediction", "as_velocity": True},
    )
