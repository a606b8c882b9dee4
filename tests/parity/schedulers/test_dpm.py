"""Trajectories of DPM-Solver and DPM-Solver++."""

from __future__ import annotations

from ...helpers.trajectories import (
    BETAS,
    CUSTOM_TIMESTEPS,
    GIVEN,
    GRID_OR_TIMESTEPS,
    GRIDS,
    ONE_GRID,
    PREDICTIONS,
    STEPS,
    THRESHOLDS,
    Bound,
    Config,
    Reason,
    TrajectoryParity,
    grid_flags,
)

MULTISTEP = "DPMSolverMultistepScheduler"
FLOWS: Config = {
    "use_flow_sigmas": [False, True],
    "flow_shift": [1.0, 3.0],
}
DYNAMIC: Config = {
    "use_dynamic_shifting": [False, True],
    "time_shift_type": ["exponential"],
    "mu": [None, 0.7],
}
SOLVERS: Config = {
    "solver_order": [2, 1, 3],
    "prediction_type": [*PREDICTIONS, "flow_prediction"],
    **THRESHOLDS,
    "algorithm_type": ["dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"],
    "solver_type": ["midpoint", "heun"],
    "lower_order_final": [True, False],
    "lambda_min_clipped": [-float("inf"), -4.0],
    "variance_type": [None, "learned", "learned_range"],
}


def _reads_noise(c: Config) -> bool:
    return not c["algorithm_type"].endswith("++")


def _no_length(c: Config) -> bool:
    """Whether the last step goes from the smallest trained σ to itself, by a method that divides by its length."""
    grid = grid_flags(c) or c.get("use_lu_lambdas")
    repeats = grid or c["use_flow_sigmas"]  # where the config has no say
    repeats = (grid and c["final_sigmas_type"] == "sigma_min") if "final_sigmas_type" in c else repeats
    few = c["lower_order_final"] and (isinstance(c["timetable"], dict) or c["timetable"] < 15)
    divides = c["solver_order"] == 3 or (c["solver_order"] == 2 and c["solver_type"] == "heun")
    return repeats and divides and not few and not c.get("euler_at_final")


REFUSED = {
    "even λ give timesteps themselves": lambda c: c.get("use_lu_lambdas") and c["timetable"] is CUSTOM_TIMESTEPS,
    "sigmas above 1 are no flow's": lambda c: c["use_flow_sigmas"] and (grid_flags(c) or c.get("use_lu_lambdas")),
    "flow sigmas give timesteps themselves": lambda c: c["use_flow_sigmas"] and c["timetable"] is CUSTOM_TIMESTEPS,
    "mu is for dynamic shifting": lambda c: c.get("mu") is not None and not c["use_dynamic_shifting"],
    "there is no noise at σ = 0": lambda c: _reads_noise(c) and c.get("final_sigmas_type") == "zero",
    "there is no such order": lambda c: c["algorithm_type"] == "sde-dpmsolver" and c["solver_order"] == 3,
}
REASONS = [
    ONE_GRID,
    GRID_OR_TIMESTEPS,
    *(Reason(why, lambda name, c, applies=applies: applies(c), "refuses") for why, applies in REFUSED.items()),
    Reason(
        "diffusers prefers Karras' grid to even λ",
        lambda name, c: c.get("use_lu_lambdas") and c["use_karras_sigmas"],
        "refuses",
        {"use_lu_lambdas": False},
    ),
    Reason(
        "diffusers prefers even λ to other grids",
        lambda name, c: c.get("use_lu_lambdas") and grid_flags(c),
        "refuses",
        {"use_exponential_sigmas": False, "use_beta_sigmas": False},
    ),
    Reason(
        "diffusers reads no noise from flow predictions",
        lambda name, c: _reads_noise(c) and c["prediction_type"] == "flow_prediction",
        "is finite",
    ),
    Reason("the last step is 0/0", lambda name, c: _no_length(c), "is finite"),
    Reason(
        "diffusers leaves the variance in the output unless it predicts noise",
        lambda name, c: c["variance_type"] is not None and c["prediction_type"] != "epsilon",
        "is right",
        {"variance_type": None},
    ),
]


WIDER = [
    Bound(
        "in a step from σ > 500 to σ < 0.01, ε gives x as a difference of terms hundreds of times larger",
        lambda name, c: _reads_noise(c) and c["use_beta_sigmas"],
        1e-3,
    ),
]


NOISY_END = {"final_sigmas_type": "sigma_min"}


class TestMultistep(TrajectoryParity):
    tables = {
        MULTISTEP: {
            **BETAS,
            **SOLVERS,
            "euler_at_final": [False, True],
            **GRIDS,
            "use_lu_lambdas": [False, True],
            **FLOWS,
            "final_sigmas_type": ["zero", "sigma_min"],
            "timestep_spacing": ["linspace", "leading", "trailing"],
            "steps_offset": [0, 1],
            "rescale_betas_zero_snr": [False, True],
            **DYNAMIC,
            "timetable": [*STEPS, 7, 23, CUSTOM_TIMESTEPS],
            "variance_noise": [None, GIVEN],
        },
    }
    begin_index = 0
    reasons = REASONS
    further = [
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}, None)
    ]
    wider = WIDER
