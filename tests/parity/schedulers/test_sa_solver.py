"""Trajectories of SA-Solver."""

from __future__ import annotations

from ...helpers.trajectories import (
    BETAS,
    GRIDS,
    ONE_GRID,
    PREDICTIONS,
    STEPS,
    THRESHOLDS,
    Bound,
    Config,
    Reason,
    RoundedTrajectoryParity,
    grid_flags,
)

NAME = "SASolverScheduler"


def _reads_noise(c: Config) -> bool:
    return c["algorithm_type"] == "noise_prediction"


def _order(c: Config) -> int:
    return max(c["predictor_order"], c["corrector_order"])


def _constant(t: object) -> float:
    return 0.6


def _late(t: float) -> float:
    return (1500 - int(t)) / 1000  # a number; of a tensor diffusers would make all coefficients in float32


class TestSASolver(RoundedTrajectoryParity):
    tables = {
        NAME: {
            **BETAS,
            "predictor_order": [2, 1, 3, 4, 5],
            "corrector_order": [2, 1, 3, 4, 5, 0],
            "prediction_type": [*PREDICTIONS, "flow_prediction"],
            "tau_func": [None, _constant, _late],
            **THRESHOLDS,
            "algorithm_type": ["data_prediction", "noise_prediction"],
            "lower_order_final": [True, False],
            **GRIDS,
            "use_flow_sigmas": [False, True],
            "flow_shift": [1.0, 3.0],
            "lambda_min_clipped": [-float("inf"), -4.0],
            "variance_type": [None, "learned", "learned_range"],
            "timestep_spacing": ["linspace", "leading", "trailing"],
            "steps_offset": [0, 1],
            "timetable": [*STEPS, 7, 23],
        },
    }
    begin_index = 0
    reasons = [
        ONE_GRID,
        Reason("sigmas above 1 are no flow's", lambda name, c: c["use_flow_sigmas"] and grid_flags(c), "refuses"),
        Reason(
            "diffusers has polynomials of up to four outputs",
            lambda name, c: 5 in (c["predictor_order"], c["corrector_order"]),
            "is finite",
        ),
        Reason("diffusers cannot leave the corrector out", lambda name, c: c["corrector_order"] == 0, "is finite"),
        Reason(
            "diffusers reads no noise from flow predictions",
            lambda name, c: _reads_noise(c) and c["prediction_type"] == "flow_prediction",
            "is finite",
        ),
        Reason(
            "diffusers looks for the noise level at a timestep that it does not know",
            lambda name, c: _reads_noise(c) and c["thresholding"],
            "is finite",
        ),
        Reason(
            "diffusers makes noise of the shape of the output, variance included",
            lambda name, c: c["variance_type"] is not None,
            "is right",
            {"variance_type": None},
        ),
    ]
    wider = [
        Bound(
            "coefficients of order 4 are small differences of large float32 numbers",
            lambda name, c: _order(c) == 4,
            5e-3,
        ),
        Bound("so are those of order 3, if less", lambda name, c: _order(c) == 3, 4e-4),
        Bound(
            "ε gives x as a difference of large terms in a jump from nearly no signal",
            lambda name, c: _reads_noise(c) and (c["use_beta_sigmas"] or c["use_flow_sigmas"]),
            1e-3,
        ),
    ]
