"""Trajectories of UniPC."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest

import safelight

from ...helpers.compare import relative_difference
from ...helpers.sampling import familiar_run
from ...helpers.trajectories import (
    GRIDS,
    MULTISTEP,
    ONE_GRID,
    STEPS,
    TOLERANCE,
    Config,
    Reason,
    TrajectoryParity,
    grid_flags,
)

NAME = "UniPCMultistepScheduler"
CUSTOM = {"sigmas": np.array([1.0, 0.9, 0.6, 0.3, 0.1])}


def _no_length(c: Config) -> bool:
    """Whether the last step goes from a σ to itself, or to 0, by a method that divides or multiplies by its length."""
    if c["final_sigmas_type"] == "zero" and (not c["predict_x0"] or c["solver_type"] == "bh1"):
        return True
    repeats = grid_flags(c) or c["use_flow_sigmas"] or c["final_sigmas_type"] == "zero"
    return repeats and not c["lower_order_final"] and c["solver_order"] > 1


RISING = "a grid between given sigmas; theirs rises from the last to the first"
REFUSED = {
    "custom sigmas are for flows": lambda c: c["timetable"] is CUSTOM and not c["use_flow_sigmas"],
    "dynamic shifting needs mu": lambda c: c["use_dynamic_shifting"] and c["mu"] is None,
    "a terminal is for flows": lambda c: c["shift_terminal"] is not None and not c["use_flow_sigmas"],
    "σ above 1 is no flow's": lambda c: c["use_flow_sigmas"] and (c["use_exponential_sigmas"] or c["use_beta_sigmas"]),
    RISING: lambda c: c["timetable"] is CUSTOM and grid_flags(c),
}  # fmt: skip


class TestUniPC(TrajectoryParity):
    tables = {
        NAME: {
            **MULTISTEP,
            "predict_x0": [True, False],
            "solver_type": ["bh2", "bh1", "midpoint"],
            "lower_order_final": [True, False],
            "disable_corrector": [[], [0, 1, 4]],
            "solver_p": [None],
            **GRIDS,
            "use_flow_sigmas": [False, True],
            "flow_shift": [1.0, 3.0],
            "timestep_spacing": ["linspace", "leading", "trailing"],
            "steps_offset": [0, 1],
            "final_sigmas_type": ["zero", "sigma_min"],
            "rescale_betas_zero_snr": [False, True],
            "use_dynamic_shifting": [False, True],
            "time_shift_type": ["exponential", "linear"],
            "mu": [None, 0.7],
            "sigma_min": [None, 0.03],
            "sigma_max": [None, 1.4],
            "shift_terminal": [None, 0.1],
            "timetable": [*STEPS, 7, 23, CUSTOM],
        },
    }
    unseeded = (NAME,)
    begin_index = 0
    further = [(NAME, {"timetable": CUSTOM, "use_flow_sigmas": True, "use_karras_sigmas": True}, None)]
    reasons = [
        ONE_GRID,
        *(Reason(why, lambda name, c, applies=applies: applies(c), "refuses") for why, applies in REFUSED.items()),
        Reason(
            "diffusers ignores mu without dynamic shifting",
            lambda name, c: c["mu"] is not None and not c["use_dynamic_shifting"],
            "refuses",
            {"mu": None},
        ),
        Reason(
            "diffusers thresholds only x0",
            lambda name, c: c["thresholding"] and not c["predict_x0"],
            "refuses",
            {"thresholding": False},
        ),
        Reason(
            "diffusers reads no noise from flow predictions",
            lambda name, c: not c["predict_x0"] and c["prediction_type"] == "flow_prediction",
            "is finite",
        ),
        Reason("the last step is 0/0 or 0·∞", lambda name, c: _no_length(c), "is finite"),
    ]

    def check_that_theirs_fails(self, name: str, combination: Config, reason: Reason) -> None:
        if reason.why != RISING:
            return super().check_that_theirs_fails(name, combination, reason)
        sigmas = self.attempt(diffusers, name, combination)[1].sigmas
        assert (sigmas[:-1].diff() > 0).all()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_another_predictor(order: int) -> None:
    runs = []
    for library in (safelight, diffusers):
        predictor = library.DPMSolverMultistepScheduler(solver_type="heun", solver_order=order)
        scheduler = library.UniPCMultistepScheduler(solver_p=predictor, solver_order=order)
        scheduler.set_timesteps(12)
        runs.append(familiar_run(scheduler).samples)
    assert relative_difference(*runs) <= TOLERANCE
    plain = safelight.UniPCMultistepScheduler(solver_order=order)
    plain.set_timesteps(12)
    assert relative_difference(familiar_run(plain).samples, runs[0]) > 10 * TOLERANCE or order == 1
