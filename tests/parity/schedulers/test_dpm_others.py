"""Trajectories of DPM-Solver in single steps, and upwards."""

from __future__ import annotations

from ...helpers.trajectories import (
    BETAS,
    CUSTOM_TIMESTEPS,
    GIVEN,
    GRIDS,
    STEPS,
    Bound,
    Reason,
    RoundedTrajectoryParity,
    TrajectoryParity,
)
from .test_dpm import DYNAMIC, FLOWS, REASONS, SOLVERS

SINGLESTEP, INVERSE = "DPMSolverSinglestepScheduler", "DPMSolverMultistepInverseScheduler"
ABSENT = {"final_sigmas_type", "use_lu_lambdas"}


def _reasons(*left_out: str) -> list[Reason]:
    return [reason for reason in REASONS if not any(word in reason.why for word in left_out)]


class TestSinglestep(TrajectoryParity):
    tables = {
        SINGLESTEP: {
            **BETAS,
            **SOLVERS,
            "algorithm_type": ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"],
            "lower_order_final": [False, True],
            **GRIDS,
            **FLOWS,
            "final_sigmas_type": ["zero", "sigma_min"],
            **DYNAMIC,
            "timetable": [*STEPS, 7, 23, 1, 2, CUSTOM_TIMESTEPS],
        }
    }
    begin_index = 0
    reasons = [
        Reason(
            "diffusers takes only the number of custom timesteps for flow sigmas",
            lambda name, c: c["use_flow_sigmas"] and c["timetable"] is CUSTOM_TIMESTEPS,
            "refuses",
            {"timetable": len(CUSTOM_TIMESTEPS["timesteps"])},
        ),
        *_reasons("even λ", "no such order", "leaves the variance", "flow sigmas give timesteps"),
        Reason(
            "diffusers looks its noise level up at no timestep",
            lambda name, c: c["thresholding"] and c["algorithm_type"] == "dpmsolver",
            "is finite",
        ),
        *(reason for reason in REASONS if "leaves the variance" in reason.why),
    ]


class TestInverse(RoundedTrajectoryParity):
    tables = {
        INVERSE: {
            **BETAS,
            **SOLVERS,
            "euler_at_final": [False, True],
            **GRIDS,
            **FLOWS,
            "timestep_spacing": ["linspace", "leading", "trailing"],
            "steps_offset": [0, 1],
            "timetable": [*STEPS, 7, 23],
            "variance_noise": [None, GIVEN],
        }
    }
    reasons = [
        Reason(
            "noise is not taken away",
            lambda name, c: c["algorithm_type"].startswith("sde") and not c["use_flow_sigmas"],
            "refuses",
        ),
        *_reasons("even λ", "timesteps", "mu is", "at σ = 0", "leaves the variance"),
        Reason(
            "diffusers forgets the noise in its third order",
            lambda name, c: c["algorithm_type"] == "sde-dpmsolver++" and c["solver_order"] == 3,
            "is finite",
        ),
        Reason(
            "two whole timesteps are equal, and diffusers starts at the second",
            lambda name, c: c["use_exponential_sigmas"] or c["use_beta_sigmas"],
            "is finite",
        ),
        *(reason for reason in REASONS if "leaves the variance" in reason.why),
    ]
    wider = [
        Bound(
            "in a step upwards to a σ' more than ten times σ, x is a difference of terms σ'/σ times larger",
            lambda name, c: c["algorithm_type"].endswith("++") and (c["timetable"] == 5 or c["use_beta_sigmas"]),
            5e-5,
        )
    ]
    further = [(INVERSE, {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "use_flow_sigmas": True}, None)]
