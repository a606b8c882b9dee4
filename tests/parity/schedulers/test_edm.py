"""Trajectories of the solvers for EDM's networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ...helpers.trajectories import STEPS, THRESHOLDS, Config, Reason, TrajectoryParity

EULER = "EDMEulerScheduler"
MULTISTEP = "EDMDPMSolverMultistepScheduler"
COSINE = "CosineDPMSolverMultistepScheduler"
PLACES = {"sigmas": [0.0, 0.3, 0.35, 0.8, 1.0]}  # in the grid, as diffusers reads custom sigmas
NETWORKS: Config = {
    "sigma_min": [0.002, 0.05],
    "sigma_max": [80.0, 3.0],
    "sigma_data": [0.5, 1.0],
    "sigma_schedule": ["karras", "exponential"],
    "num_train_timesteps": [1000, 200],
    "prediction_type": ["epsilon", "v_prediction"],
    "rho": [7.0, 5.0],
    "final_sigmas_type": ["zero", "sigma_min"],
}
SOLVER: Config = {
    "solver_order": [2, 1, 3],
    "solver_type": ["midpoint", "heun", "bh2"],
    "lower_order_final": [True, False],
    "euler_at_final": [False, True],
}


class TestEDMEuler(TrajectoryParity):
    tables = {
        EULER: {
            **NETWORKS,
            "timetable": [*STEPS, 1, 7, PLACES],
            "s_churn": [0.0, 3.0, 100.0],
            "s_tmin": [0.0, 0.3],
            "s_tmax": [float("inf"), 4.0],
            "s_noise": [1.0, 1.1],
        },
    }
    left_out = frozenset({"pred_original_sample"})  # test_edm_surface.py

    def set_timesteps(self, scheduler: Any, config: Config) -> None:
        if config["timetable"] is PLACES:  # diffusers takes no list
            config = config | {"timetable": {"sigmas": torch.tensor(PLACES["sigmas"], dtype=torch.float64)}}
        super().set_timesteps(scheduler, config)


def _no_length(c: Config) -> bool:
    """Whether the last step goes from σ_min to itself, but for rounding, by a formula that minds."""
    few = c["lower_order_final"] and c["timetable"] < 15
    divides = c["solver_order"] == 3 or (c["solver_order"] == 2 and c["solver_type"] == "heun")
    divides = divides and not few and not c["euler_at_final"] and c["timetable"] > 1
    return c["final_sigmas_type"] == "sigma_min" and (divides or c.get("algorithm_type", "sde").startswith("sde"))


class TestEDMMultistep(TrajectoryParity):
    tables = {
        MULTISTEP: {
            **NETWORKS,
            **SOLVER,
            **THRESHOLDS,
            "algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "deis"],
            "timetable": [*STEPS, 1, 7, 23],
        },
    }
    reasons = [
        Reason(
            "there is no such order",
            lambda name, c: c["algorithm_type"] == "sde-dpmsolver++" and c["solver_order"] == 3,
            "refuses",
        ),
        Reason(
            "diffusers takes 'deis' for \"dpmsolver++\", but still asks whether it could end at σ = 0",
            lambda name, c: c["algorithm_type"] == "deis" and c["final_sigmas_type"] == "zero",
            "is right",
            {"algorithm_type": "dpmsolver++"},
        ),
        Reason("the last step is 0/0, or the root of a rounding error", lambda name, c: _no_length(c), "is finite"),
    ]
    further = [
        (MULTISTEP, {"solver_order": 3, "lower_order_final": False, "prediction_type": "v_prediction"}, None),
        (MULTISTEP, {"solver_order": 3, "sigma_schedule": "exponential", "timetable": 50}, None),
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "timetable": 23}, None),
    ]


ROUNDED = {"sigma_min": 0.05, "sigma_max": 3.0, "sigma_schedule": "karras", "rho": 5.0}


class TestCosine(TrajectoryParity):
    tables = {
        COSINE: {
            "sigma_min": [0.3, 0.05],
            "sigma_max": [500, 3.0],
            "sigma_data": [1.0, 0.5],
            "sigma_schedule": ["exponential", "karras"],
            "num_train_timesteps": [1000, 200],
            "prediction_type": ["v_prediction", "epsilon"],
            "rho": [7.0, 5.0],
            "final_sigmas_type": ["zero", "sigma_min"],
            **SOLVER,
            "solver_order": [2, 1],
            "timetable": [*STEPS, 1, 7, 23],
        },
    }
    reasons = [
        Reason("the noise of a step of no length is 0/0", lambda name, c: _no_length(c), "is finite"),
        Reason(
            "the last σ lies within a millionth above sigma_min, where the tree of diffusers halves without end",
            lambda name, c: all(c[key] == value for key, value in ROUNDED.items()) and c["timetable"] > 1,
            "is finite",
        ),
    ]
    further = [(COSINE, {"sigma_schedule": "karras", "solver_type": "heun", "timetable": 23}, None)]

    @pytest.mark.filterwarnings("ignore:Should have")  # theirs asks for noise beyond the ends of its tree
    def test_every_step_equals(self, case: str) -> None:
        super().test_every_step_equals(case)
