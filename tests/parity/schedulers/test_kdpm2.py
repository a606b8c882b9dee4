"""Trajectories of the midpoint method in log σ."""

from __future__ import annotations

import pytest

from ...helpers.sigma_parity import FEWER, SIGMA_SPACINGS, SigmaParity, no_sample
from ...helpers.trajectories import GRIDS, LATENT_BETAS, ONE_GRID, PREDICTIONS, STEPS, Config, Reason, grid_flags

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy")  # diffusers' use of it


def _far_apart(name: str, c: Config) -> bool:
    few = not isinstance(c["timetable"], int) or 2 <= c["timetable"] <= 10
    first = c["beta_schedule"] == "squaredcos_cap_v2" and c["trained_betas"] is None and c["timestep_spacing"]
    return "Ancestral" in name and few and first in ("linspace", "trailing") and not grid_flags(c)


KDPM2 = {
    **LATENT_BETAS,
    **GRIDS,
    "prediction_type": PREDICTIONS,
    "timestep_spacing": SIGMA_SPACINGS,
    "steps_offset": [0, 1],
    "timetable": [*STEPS, 7, 2, 1, FEWER],
}


class TestKDPM2(SigmaParity):
    tables = {"KDPM2DiscreteScheduler": KDPM2, "KDPM2AncestralDiscreteScheduler": KDPM2}
    unseeded = ("KDPM2DiscreteScheduler",)
    reasons = [
        ONE_GRID,
        no_sample(*tables),
        Reason("rounding may leave nothing of the σ that a step goes down to", _far_apart, "is finite"),
    ]
