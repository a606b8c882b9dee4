"""Trajectories of the solvers on the straight path between noise and data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...helpers.sampling import Run
from ...helpers.trajectories import GIVEN, GRIDS, ONE_GRID, STEPS, Bound, Config, Reason, TrajectoryParity

EULER, HEUN, LCM = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"
LEVELS = [1.0, 0.81, 0.55, 0.3, 0.04]
TOLD = [990.0, 800.0, 501.5, 250.0, 20.0]
TABLE: Config = {
    "num_train_timesteps": [1000, 200],
    "shift": [1.0, 3.0, 0.6],
    "use_dynamic_shifting": [False, True],
    "base_shift": [0.5, 0.25],
    "max_shift": [1.15, 0.75],
    "base_image_seq_len": [256, 64],
    "max_image_seq_len": [4096, 1024],
    "invert_sigmas": [False, True],
    "shift_terminal": [None, 0.02, 0.1],
    **GRIDS,
    "time_shift_type": ["exponential", "linear"],
    "mu": [None, 0.8, 1.4],
    "timetable": [
        *STEPS,
        7,
        {"sigmas": LEVELS},
        {"timesteps": TOLD},
        {"sigmas": LEVELS, "timesteps": TOLD},
        {"sigmas": LEVELS, "num_inference_steps": len(LEVELS)},
        {"sigmas": [*LEVELS, 0.0]},
        {"num_inference_steps": 1},
    ],
}
CHURN: Config = {
    "s_churn": [0.0, 3.0, 100.0],
    "s_tmin": [0.0, 0.3],
    "s_tmax": [float("inf"), 0.9],
    "s_noise": [1.0, 1.1],
}


def evaluations(timetable: Any) -> int:
    if isinstance(timetable, int):
        return timetable
    return next(n if isinstance(n, int) else len(n) for n in timetable.values())


def _ends_at_zero(c: Config) -> bool:
    return not isinstance(c["timetable"], int) and c["timetable"].get("sigmas", [1.0])[-1] == 0.0


class TestFlow(TrajectoryParity):
    tables = {
        EULER: {**TABLE, "stochastic_sampling": [False, True], **CHURN},
        HEUN: {
            "num_train_timesteps": [1000, 200],
            "shift": [1.0, 3.0, 0.6],
            "timetable": [*STEPS, 7, 2, 1],
            **CHURN,
        },
        LCM: {
            **TABLE,
            "scale_factors": [None, GIVEN],
            "upscale_mode": ["bicubic", "bilinear", "nearest", "nearest-exact", "area", None],
        },
    }
    left_out = frozenset({"per_token_timesteps"})
    reasons = [
        ONE_GRID,
        Reason(
            "dynamic shifting shifts by mu",
            lambda name, c: c.get("use_dynamic_shifting", False) and c["mu"] is None,
            "refuses",
        ),
        Reason(
            "a grid that is even in log sigma does not reach zero",
            lambda name, c: _ends_at_zero(c) and c["use_exponential_sigmas"] and not c["shift_terminal"],
            "refuses",
        ),
        Reason(
            "a single sigma of one cannot be stretched to another end",
            lambda name, c: evaluations(c["timetable"]) == 1 and bool(c.get("shift_terminal")),
            "is right",
            {"shift_terminal": None},
        ),
    ]

    wider = [
        Bound(
            "theirs takes y from (x − (x − σ·y))/σ, which at the last σ of 0.001 loses digits, times half a long step",
            lambda name, c: name == HEUN and c["timetable"] == 2 and c["dtype"] is torch.float32,
            1e-4,
        )
    ]
    further = [
        (EULER, {"use_exponential_sigmas": True, "timetable": {"sigmas": [*LEVELS, 0.0]}}, None),
        (LCM, {"use_exponential_sigmas": True, "timetable": {"sigmas": [*LEVELS, 0.0]}}, None),
        *[
            (name, {"use_dynamic_shifting": True, "mu": 1.1, "shift_terminal": 0.02, "timetable": timetable}, None)
            for name in (EULER, LCM)
            for timetable in (10, {"sigmas": LEVELS})
        ],
        (EULER, {"stochastic_sampling": True, "shift": 3.0, "timetable": {"timesteps": TOLD}}, None),
        (EULER, {"stochastic_sampling": True, "invert_sigmas": True, "use_karras_sigmas": True}, None),
        (HEUN, {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 0.9, "s_noise": 1.1, "shift": 3.0}, None),
        (LCM, {"scale_factors": GIVEN, "upscale_mode": "bilinear", "shift": 3.0, "timetable": 5}, None),
    ]

    def set_timesteps(self, scheduler: Any, config: Config) -> None:
        timetable = config["timetable"]
        if isinstance(timetable, dict) and "timesteps" in timetable:
            told = [time * config["num_train_timesteps"] / 1000 for time in timetable["timesteps"]]
            config = config | {"timetable": timetable | {"timesteps": told}}
        super().set_timesteps(scheduler, config)

    def attempt(self, library: Any, name: str, combination: Config) -> tuple[Run, Any, Config]:
        if combination.get("scale_factors") is GIVEN:
            count = evaluations(combination.get("timetable", STEPS[0]))
            combination = combination | {"scale_factors": np.linspace(1.2, 2.0, count - 1).tolist()}
        return super().attempt(library, name, combination)
