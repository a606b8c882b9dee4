"""Trajectories of the samplers for networks distilled for few steps."""

from __future__ import annotations

from typing import Any

from ...helpers.trajectories import (
    LATENT_BETAS,
    LIMITS,
    PREDICTIONS,
    STEPS,
    Config,
    Reason,
    TrajectoryParity,
)

CUSTOM = {"timesteps": [179, 119, 59, 19]}
ORIGINAL_STEPS = "original_inference_steps"
ORIGINAL = {"num_inference_steps": 12, ORIGINAL_STEPS: 40}
OPTIONS: Config = {
    **LATENT_BETAS,
    "beta_schedule": ["scaled_linear", "linear", "squaredcos_cap_v2"],
    **LIMITS,
    "clip_sample": [False, True],
    "set_alpha_to_one": [True, False],
    "steps_offset": [0, 1],
    "prediction_type": PREDICTIONS,
    "timestep_spacing": ["leading", "trailing"],
    "timestep_scaling": [10.0, 0.01],
    "rescale_betas_zero_snr": [False, True],
    ORIGINAL_STEPS: [50, 100],
    "strength": [1.0, 0.6],
    "timetable": [*STEPS, 4, 1, CUSTOM, ORIGINAL],
}


def _too_many(c: Config) -> bool:
    steps = c["timetable"]
    return not isinstance(steps, dict) and steps > int(c[ORIGINAL_STEPS] * c["strength"])


class TestDistilled(TrajectoryParity):
    tables = {"LCMScheduler": OPTIONS, "TCDScheduler": {**OPTIONS, "eta": [0.3, 0.0, 1.0]}}
    reasons = [
        Reason("the network was distilled on fewer steps", lambda name, c: _too_many(c), "refuses"),
        Reason(
            "diffusers ignores clipping in TCD",
            lambda name, c: name == "TCDScheduler" and (c["clip_sample"] or c["thresholding"]),
            "refuses",
            {"clip_sample": False, "thresholding": False},
        ),
        Reason(
            "an epsilon network says nothing about x0 where the signal is zero",
            lambda name, c: (
                c["rescale_betas_zero_snr"]
                and c["prediction_type"] == "epsilon"
                and c["strength"] == 1
                and c["timetable"] is not CUSTOM
                and (c["thresholding"] or not c["clip_sample"])
            ),
            "refuses",
        ),
    ]

    def set_timesteps(self, scheduler: Any, config: Config) -> None:
        """The config's `original_inference_steps` counts unless the timetable gives others."""
        super().set_timesteps(scheduler, {key: value for key, value in config.items() if key != ORIGINAL_STEPS})
