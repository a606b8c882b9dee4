"""Trajectories of Euler's method in σ."""

from __future__ import annotations

from ...helpers.trajectories import (
    BETAS,
    CUSTOM_SIGMAS,
    CUSTOM_TIMESTEPS,
    GRID_OR_TIMESTEPS,
    GRIDS,
    ONE_GRID,
    PREDICTIONS,
    STEPS,
    Reason,
    TrajectoryParity,
)

# Whether it goes wrong depends on the numbers.
SAME_START = Reason(
    "sigmas above the trained ones give the first two steps one timestep; diffusers starts at the second, and runs out",
    lambda name, c: False,
    "is right",
    {"begin_index": 0},
)
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
CONTINUOUS = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
NAME = "EulerDiscreteScheduler"


class TestEuler(TrajectoryParity):
    tables = {
        NAME: {
            **BETAS,
            "prediction_type": [*PREDICTIONS, "original_sample"],
            "interpolation_type": ["linear", "log_linear"],
            **GRIDS,
            "sigma_min": [None, 0.05],
            "sigma_max": [None, 1.4],
            "timestep_spacing": ["linspace", "leading", "trailing"],
            "timestep_type": ["discrete", "continuous"],
            "steps_offset": [0, 1],
            "rescale_betas_zero_snr": [False, True],
            "final_sigmas_type": ["zero", "sigma_min"],
            "timetable": [*STEPS, 7, 23, CUSTOM_TIMESTEPS, CUSTOM_SIGMAS],
            "s_churn": [0.0, 3.0, 100.0],
            "s_tmin": [0.0, 0.3],
            "s_tmax": [float("inf"), 4.0],
            "s_noise": [1.0, 1.1],
        },
    }
    reasons = [
        ONE_GRID,
        GRID_OR_TIMESTEPS,
        Reason(
            "custom timesteps contradict continuous ones",
            lambda name, c: (
                c["timetable"] is CUSTOM_TIMESTEPS
                and c["timestep_type"] == "continuous"
                and c["prediction_type"] == "v_prediction"
            ),
            "refuses",
        ),
    ]
    further = [
        (NAME, {**ZERO_SNR, "timetable": 4, "s_churn": 3.0, "s_noise": 1.1}, None),
        (NAME, {**CONTINUOUS, "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}, None),
        (NAME, {**CONTINUOUS, "interpolation_type": "log_linear"}, None),
        (NAME, {**CONTINUOUS, "timetable": CUSTOM_SIGMAS}, None),
        (NAME, {**CONTINUOUS, "timetable": CUSTOM_TIMESTEPS}, None),
        (NAME, {"num_train_timesteps": 200, "timetable": {"sigmas": [12.0, 5.0, 2.0, 0.1, 0.0]}}, SAME_START),
    ]
