"""Every solver against analysis, on Gaussian data: its order, or the mean and the spread of its samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

import safelight

from ..helpers.gaussian import measured_order

VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EVEN = {**VP, "use_exponential_sigmas": True}  # the same step everywhere in log σ
OPEN = {**EVEN, "final_sigmas_type": "sigma_min"}  # ends above σ = 0
COUNTS = (12, 24, 48, 96)


class Ordered(NamedTuple):
    """A deterministic solver, the order that it is to have, and where that shows."""

    name: str
    order: float
    config: dict[str, Any] = EVEN
    counts: tuple[int, ...] = COUNTS
    options: dict[str, Any] = {}  # noqa: RUF012


def _dpm(order: int, algorithm: str, kind: str) -> Ordered:
    config = {**OPEN, "solver_order": order, "algorithm_type": algorithm, "solver_type": kind}
    return Ordered("DPMSolverMultistepScheduler", order, {**config, "lower_order_final": False}, options=FIXED)


FIXED = {"corrected": True}
ORDERED = [
    Ordered("DDIMScheduler", 1, {**VP, "clip_sample": False}, (25, 50, 100, 200)),
    Ordered("EulerDiscreteScheduler", 1),
    Ordered("HeunDiscreteScheduler", 2),
    Ordered("KDPM2DiscreteScheduler", 2),
    *(_dpm(order, algorithm, kind) for order in (1, 2, 3) for algorithm in ("dpmsolver++", "dpmsolver") for kind in ("midpoint", "heun")),
    # The corrector adds one to the order of the predictor (UniPC, theorem 3.1).
    *(Ordered("UniPCMultistepScheduler", order + 1, {**OPEN, "solver_order": order, "predict_x0": x0, "solver_type": kind}) for order in (1, 2, 3) for x0 in (True, False) for kind in ("bh1", "bh2")),
    Ordered("FlowMatchEulerDiscreteScheduler", 1, {}),
    Ordered("FlowMatchHeunDiscreteScheduler", 2, {}),
]  # fmt: skip


def label(case: Any) -> str:
    special = [str(value) for key, value in case.config.items() if OPEN.get(key) != value and VP.get(key) != value]
    return "-".join([case.name.removesuffix("Scheduler"), *special])


@pytest.mark.parametrize("case", ORDERED, ids=label)
def test_order(case: Ordered) -> None:
    scheduler = getattr(safelight, case.name)(**case.config)
    measured, errors = measured_order(scheduler, case.counts, **case.options)
    assert measured > case.order - 0.2
    assert errors[-1] < 0.02
