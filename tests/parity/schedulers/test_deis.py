"""Trajectories of DEIS."""

from __future__ import annotations

from ...helpers.trajectories import (
    GRIDS,
    MULTISTEP,
    ONE_GRID,
    STEPS,
    Bound,
    Reason,
    RoundedTrajectoryParity,
    grid_flags,
)

NAME = "DEISMultistepScheduler"


class TestDEIS(RoundedTrajectoryParity):
    tables = {
        NAME: {
            **MULTISTEP,
            "algorithm_type": ["deis", "dpmsolver", "dpmsolver++"],
            "solver_type": ["logrho", "midpoint", "heun", "bh1", "bh2"],
            "lower_order_final": [True, False],
            **GRIDS,
            "use_flow_sigmas": [False, True],
            "flow_shift": [1.0, 3.0],
            "timestep_spacing": ["linspace", "leading", "trailing"],
            "steps_offset": [0, 1],
            "use_dynamic_shifting": [False, True],
            "time_shift_type": ["exponential"],
            "mu": [None, 0.7],
            "timetable": [*STEPS, 7, 23],
        },
    }
    unseeded = (NAME,)
    begin_index = 0
    reasons = [
        ONE_GRID,
        Reason(
            "sigmas above 1 are no flow's",
            lambda name, c: c["use_flow_sigmas"] and grid_flags(c),
            "refuses",
        ),
        Reason(
            "mu is for dynamic shifting",
            lambda name, c: c["mu"] is not None and not c["use_dynamic_shifting"],
            "refuses",
        ),
    ]
    wider = [
        Bound(
            "on long jumps in σ, coefficients of order 3 are small differences of large float32 numbers",
            lambda name, c: c["use_beta_sigmas"] and c["solver_order"] == 3,
            1e-2,
        ),
        Bound("so they are on any grid, if less", lambda name, c: c["solver_order"] == 3, 2e-4),
        Bound("ε gives x as a difference of large terms in a long jump", lambda name, c: c["use_beta_sigmas"], 1e-4),
        Bound("… or from nearly no signal", lambda name, c: c["use_flow_sigmas"], 1e-4),
    ]
