"""Trajectories of the solvers that step between training timesteps."""

from __future__ import annotations

from ...helpers.trajectories import (
    BETAS,
    CUSTOM_TIMESTEPS,
    GIVEN,
    LIMITS,
    PREDICTIONS,
    SPACINGS,
    STEPS,
    Config,
    Reason,
    TrajectoryParity,
)

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


def _singular(name: str, c: Config) -> bool:
    zero_snr = c.get("rescale_betas_zero_snr") and name in ("DDPMScheduler", "DDIMScheduler")
    reached = c["timestep_spacing"] != "leading" and not isinstance(c["timetable"], dict)
    return zero_snr and reached and c["prediction_type"] == "epsilon" and (c["thresholding"] or not c["clip_sample"])


class TestTrainingTimesteps(TrajectoryParity):
    tables = {
        "DDPMScheduler": {
            **BETAS,
            "beta_schedule": [*BETAS["beta_schedule"], "sigmoid", "laplace"],
            "variance_type": [
                "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range",
            ],
            "prediction_type": PREDICTIONS,
            **LIMITS,
            "timestep_spacing": SPACINGS,
            "steps_offset": [0, 1],
            "rescale_betas_zero_snr": [False, True],
            "timetable": [*STEPS, 7, 23, CUSTOM_TIMESTEPS],
        },
        "DDIMScheduler": {
            **BETAS,
            **LIMITS,
            "set_alpha_to_one": [True, False],
            "steps_offset": [0, 1],
            "prediction_type": PREDICTIONS,
            "timestep_spacing": SPACINGS,
            "rescale_betas_zero_snr": [False, True],
            "timetable": [*STEPS, 7, 23],
            "eta": [0.0, 0.6, 1.0],
            "use_clipped_model_output": [False, True],
            "variance_noise": [None, GIVEN],
        },
        "PNDMScheduler": {
            **BETAS,
            "skip_prk_steps": [False, True],
            "set_alpha_to_one": [False, True],
            "prediction_type": ["epsilon", "v_prediction"],
            "timestep_spacing": SPACINGS,
            "steps_offset": [0, 1],
            "timetable": [*STEPS, 7, 23, 4, 3, 1],
        },
    }  # fmt: skip
    unseeded = ("PNDMScheduler",)
    reasons = [
        Reason(
            "Runge-Kutta needs four steps",
            lambda name, c: name == "PNDMScheduler" and not c["skip_prk_steps"] and c["timetable"] in (1, 3),
            "refuses",
        ),
        Reason("an epsilon network says nothing about x0 where the signal is zero", _singular, "refuses"),
        Reason(
            "diffusers takes the root of a logarithm; the type means what fixed_large means",
            lambda name, c: c.get("variance_type") == "fixed_large_log",
            "is right",
            {"variance_type": "fixed_large"},
        ),
        Reason(
            "rounding may take the root of a variance below zero",
            lambda name, c: c.get("eta") == 1.0 and c["rescale_betas_zero_snr"] and c["timestep_spacing"] != "leading",
            "is finite",
        ),
    ]
    further = [
        ("DDPMScheduler", ZERO_SNR, None),
        ("DDPMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "timetable": 23}, None),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace", "timetable": 23}, None),
        ("DDIMScheduler", {**ZERO_SNR, "clip_sample": False, "eta": 0.6}, None),
        ("DDIMScheduler", {**ZERO_SNR, "prediction_type": "epsilon", "clip_sample": False}, None),
        ("DDIMScheduler", {**ZERO_SNR, "eta": 1.0}, None),
    ]
