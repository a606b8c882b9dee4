"""Trajectories of the solvers for consistency models, in σ and on the circle."""

from __future__ import annotations

from typing import Any

from ...helpers.sampling import Run, familiar_run
from ...helpers.trajectories import STEPS, Config, Reason, TrajectoryParity

CM, SCM = "CMStochasticIterativeScheduler", "SCMScheduler"
ANGLES = [1.5, 1.1, 0.9, 0.4, 0.0]


class TestConsistency(TrajectoryParity):
    tables = {
        CM: {
            "num_train_timesteps": [40, 200],
            "sigma_min": [0.002, 0.02],
            "sigma_max": [80.0, 20.0],
            "sigma_data": [0.5, 1.0],
            "s_noise": [1.0, 1.1],
            "rho": [7.0, 4.0],
            "clip_denoised": [True, False],
            "timetable": [*STEPS, 1, 2, {"timesteps": [39, 30, 17, 2]}, {"timesteps": [22, 0]}],
        },
    }
    reasons = [
        Reason(
            "there are no more steps than sigmas",
            lambda name, c: name == CM and c["timetable"] == 50 and c["num_train_timesteps"] == 40,
            "refuses",
        ),
    ]


class TestCircle(TrajectoryParity):
    tables = {
        SCM: {
            "num_train_timesteps": [1000, 200],
            "prediction_type": ["trigflow"],
            "sigma_data": [0.5, 1.0],
            "max_timesteps": [1.5708, 1.4],
            "intermediate_timesteps": [1.3, None, 0.8],
            "timetable": [
                2,
                *STEPS,
                1,
                {"timesteps": ANGLES, "num_inference_steps": 4, "max_timesteps": None, "intermediate_timesteps": None},
            ],
        },
    }
    reasons = [
        Reason(
            "only runs of two steps have an angle between",
            lambda name, c: c["timetable"] in (1, *STEPS) and c["intermediate_timesteps"] == 0.8,
            "refuses",
        ),
        Reason(
            "the default of the angle between is for runs of two steps",
            lambda name, c: c["timetable"] in (1, *STEPS) and c["intermediate_timesteps"] == 1.3,
            "is right",
            {"intermediate_timesteps": None},
        ),
    ]

    def set_timesteps(self, scheduler: Any, config: Config) -> None:
        timetable = config["timetable"]
        arguments = {key: config[key] for key in ("max_timesteps", "intermediate_timesteps")}
        given = timetable if isinstance(timetable, dict) else {"num_inference_steps": timetable}
        scheduler.set_timesteps(**arguments | given)

    def run(self, scheduler: Any, step: Config, config: Config) -> Run:
        return familiar_run(scheduler, step, dtype=config["dtype"], end=-1)
