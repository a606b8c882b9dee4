"""Trajectories of the further solvers in σ."""

from __future__ import annotations

from ...helpers.sigma_parity import FEWER, SIGMA_SPACINGS, SigmaParity, no_sample
from ...helpers.trajectories import (
    BETAS,
    CUSTOM_TIMESTEPS,
    GRID_OR_TIMESTEPS,
    GRIDS,
    LATENT_BETAS,
    ONE_GRID,
    PREDICTIONS,
    STEPS,
)

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


class TestSigma(SigmaParity):
    tables = {
        "EulerAncestralDiscreteScheduler": {
            **BETAS,
            "prediction_type": PREDICTIONS,
            "timestep_spacing": SIGMA_SPACINGS,
            "steps_offset": [0, 1],
            "rescale_betas_zero_snr": [False, True],
            "timetable": [*STEPS, 7, 23, 1, 2],
        },
        "HeunDiscreteScheduler": {
            **LATENT_BETAS,
            "beta_schedule": [*BETAS["beta_schedule"], "exp"],
            "prediction_type": PREDICTIONS,
            **GRIDS,
            "clip_sample": [False, True],
            "clip_sample_range": [1.0, 0.6],
            "timestep_spacing": SIGMA_SPACINGS,
            "steps_offset": [0, 1],
            "timetable": [*STEPS, 7, 1, FEWER, CUSTOM_TIMESTEPS],
        },
        "LMSDiscreteScheduler": {
            **BETAS,
            **GRIDS,
            "prediction_type": PREDICTIONS,
            "timestep_spacing": SIGMA_SPACINGS,
            "steps_offset": [0, 1],
            "timetable": [*STEPS, 7, 3, 1],
            "order": [4, 1, 2, 6],
        },
    }
    unseeded = ("HeunDiscreteScheduler", "LMSDiscreteScheduler")
    reasons = [no_sample("EulerAncestralDiscreteScheduler"), ONE_GRID, GRID_OR_TIMESTEPS]
    further = [("EulerAncestralDiscreteScheduler", {**ZERO_SNR, "timetable": steps}, None) for steps in (1, 2, 10)]
