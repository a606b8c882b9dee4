"""Every solver against analysis, on Gaussian data: its order, or the mean and the spread of its samples."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import pytest
import torch

import safelight
from safelight.schedulers.base import Scheduler

from ..helpers.gaussian import MEAN, SPREAD, at_level, consistent, denoised, measured_order, sampled

VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FINE = {**VP, "num_train_timesteps": 16_000, "beta_start": 0.00085 / 16, "beta_end": 0.012 / 16}
EVEN = {**VP, "use_exponential_sigmas": True}  # the same step everywhere in log σ
OPEN = {**EVEN, "final_sigmas_type": "sigma_min"}  # ends above σ = 0
EDM = {"sigma_schedule": "exponential"}
FULL = {"lower_order_final": False}
COUNTS = (12, 24, 48, 96)


def flow_only(t: Any) -> float:
    return 0.0


def noise_always(t: Any) -> float:
    return 1.0


class Ordered(NamedTuple):
    """A deterministic solver, the order that it is to have, and where that shows."""

    name: str
    order: float
    config: dict[str, Any] = EVEN
    counts: tuple[int, ...] = COUNTS
    options: dict[str, Any] = {}  # noqa: RUF012
    down_to: float = 0.0  # σ/α
    begin: float = 0.0  # as a share of the plan


def _dpm(name: str, base: dict[str, Any], orders: tuple[int, ...], counts: tuple[int, ...] = COUNTS) -> list[Ordered]:
    every = product(orders, ("dpmsolver++", "dpmsolver"), ("midpoint", "heun"))
    return [
        Ordered(name, n, {**base, "solver_order": n, "algorithm_type": kind, "solver_type": form}, counts, FIXED)
        for n, kind, form in every
        if kind == "dpmsolver++" or base.get("final_sigmas_type") == "sigma_min"
    ]


FIXED = {"corrected": True}
ORDERED = [
    Ordered("DDIMScheduler", 1, {**VP, "clip_sample": False}, (25, 50, 100, 200)),
    # Of second order, whatever it combines (Liu et al. 2022, theorem 3.1).
    Ordered("PNDMScheduler", 2, {**FINE, "set_alpha_to_one": True}, (40, 80, 160), FIXED, 1.0),
    Ordered("IPNDMScheduler", 2, {}, (96, 192, 384, 768), FIXED),
    Ordered("EulerDiscreteScheduler", 1),
    Ordered("HeunDiscreteScheduler", 2),
    Ordered("KDPM2DiscreteScheduler", 2),
    *(Ordered("LMSDiscreteScheduler", n, EVEN, (48, 96, 192), {"order": n}) for n in (1, 2, 3, 4)),
    *_dpm("DPMSolverMultistepScheduler", {**OPEN, **FULL}, (1, 2, 3)),
    *_dpm("DPMSolverSinglestepScheduler", OPEN, (1, 2, 3), (25, 49, 97, 193)),
    *_dpm("DPMSolverMultistepInverseScheduler", {**EVEN, **FULL}, (1, 2, 3)),
    Ordered("DDIMInverseScheduler", 1, {**VP, "clip_sample": False}, (50, 100, 200), begin=0.1),
    *_dpm("EDMDPMSolverMultistepScheduler", {**EDM, **FULL}, (1, 2, 3), (24, 48, 96)),
    *(Ordered("DEISMultistepScheduler", n, {**EVEN, **FULL, "solver_order": n}) for n in (1, 2, 3)),
    *(
        # The corrector adds one to the order of the predictor (Zhao et al. 2023, theorem 3.1).
        Ordered("UniPCMultistepScheduler", n + 1, {**OPEN, "solver_order": n, "predict_x0": x0, "solver_type": form})
        for n, x0, form in product((1, 2, 3), (True, False), ("bh1", "bh2"))
    ),
    *(
        Ordered(
            "SASolverScheduler",
            max(predictor, min(corrector, predictor + 1)),
            {**EVEN, **FULL, "tau_func": flow_only, "algorithm_type": kind}
            | {"predictor_order": predictor, "corrector_order": corrector},
            (12, 24, 48),
        )
        for kind in ("data_prediction", "noise_prediction")
        for predictor, corrector in ((1, 0), (1, 2), (2, 0), (2, 3), (3, 0), (3, 4))
    ),
    Ordered("EDMEulerScheduler", 1, EDM),
    Ordered("FlowMatchEulerDiscreteScheduler", 1, {}),
    Ordered("FlowMatchHeunDiscreteScheduler", 2, {}),
]


def label(case: Any) -> str:
    special = [value for key, value in case.config.items() if key not in FINE and (key, value) not in OPEN.items()]
    words = [getattr(value, "__name__", str(value)) for value in special if value is not False]
    return "-".join(
        [case.name.removesuffix("Scheduler"), *words, *(str(case.options[k]) for k in ("order",) if k in case.options)]
    )


@pytest.mark.parametrize("case", ORDERED, ids=label)
def test_order(case: Ordered) -> None:
    scheduler = getattr(safelight, case.name)(**case.config)
    measured, errors = measured_order(scheduler, case.counts, case.down_to, case.begin, **case.options)
    assert measured > 0.9 * case.order
    assert errors[-1] < 0.1


@pytest.mark.parametrize("kind", ["dpmsolver", "dpmsolver++"])
def test_the_reference_has_a_third_order_that_is_a_second(kind: str) -> None:
    config = {**OPEN, **FULL, "solver_order": 3, "algorithm_type": kind}
    measured, _ = measured_order(safelight.DPMSolverMultistepScheduler(**config), (24, 48, 96))
    assert 1.8 < measured < 2.4


class Drawn(NamedTuple):
    """A stochastic solver that ends with samples of the data; `jumps` if its network leads straight to them."""

    name: str
    config: dict[str, Any] = EVEN
    steps: int | None = 100
    options: dict[str, Any] = {}  # noqa: RUF012
    jumps: bool = False


# Euler's method adds the noise after the network was asked, which is right as the steps become small.
CHURN = {"s_churn": 20.0, "s_tmin": 0.05}
DRAWN = [
    Drawn("UnCLIPScheduler", {"clip_sample": False}, 250),
    Drawn("RePaintScheduler", {"clip_sample": False}, 100, {"jump_n_sample": 2}),
    Drawn("RePaintScheduler", {"clip_sample": False, "eta": 1.0}, 500, {"jump_n_sample": 2}),
    Drawn("LCMScheduler", {}, 8, jumps=True),
    Drawn("ScoreSdeVeScheduler", {"sigma_max": 20.0}, 1000, FIXED),
    *(
        Drawn("DDPMScheduler", {"prediction_type": kind, "variance_type": variance, "clip_sample": False}, None)
        for kind, variance in product(("epsilon", "sample", "v_prediction"), ("fixed_small", "fixed_large"))
    ),
    *(Drawn("DDIMScheduler", {"clip_sample": False}, 250, {"eta": eta}) for eta in (0.3, 1.0)),
    Drawn("EulerAncestralDiscreteScheduler", VP, 250),
    Drawn("EulerDiscreteScheduler", EVEN, 1000, CHURN),
    Drawn("EDMEulerScheduler", {}, 1000, CHURN),
    Drawn("KDPM2AncestralDiscreteScheduler"),
    Drawn("DPMSolverSDEScheduler"),
    *(
        Drawn("DPMSolverMultistepScheduler", {**OPEN, "solver_order": n, "algorithm_type": kind}, 150, FIXED)
        for n, kind in ((1, "sde-dpmsolver++"), (2, "sde-dpmsolver++"), (3, "sde-dpmsolver++"), (2, "sde-dpmsolver"))
    ),
    Drawn("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    Drawn("CosineDPMSolverMultistepScheduler", {"sigma_min": 0.02, "sigma_max": 80.0}, 150),
    *(
        Drawn("SASolverScheduler", {**EVEN, "tau_func": noise_always, "algorithm_type": kind})
        for kind in ("data_prediction", "noise_prediction")
    ),
    Drawn("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, 8, jumps=True),
    Drawn("FlowMatchLCMScheduler", {}, 8, jumps=True),
    Drawn("SCMScheduler", {}, 6, {"intermediate_timesteps": None}, jumps=True),
    Drawn("CMStochasticIterativeScheduler", {"clip_denoised": False}, 6, jumps=True),
]


@pytest.mark.parametrize("case", DRAWN, ids=label)
def test_samples(case: Drawn) -> None:
    scheduler = getattr(safelight, case.name)(**case.config)
    plan = scheduler.plan(case.steps, **case.options)
    normal = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    first = at_level(normal, *plan.levels[0])
    samples = sampled(scheduler, plan, first, len(plan), seed=1, network=consistent if case.jumps else denoised)
    assert_like_the_data(samples)


def assert_like_the_data(samples: torch.Tensor) -> None:
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert samples.std().item() == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_samples_with_a_network_that_follows_trajectories(eta: float) -> None:
    scheduler = safelight.TCDScheduler()
    plan, generator = scheduler.plan(8, eta=eta), torch.Generator().manual_seed(1)
    x = at_level(torch.randn(20_000, 1, generator=generator), *plan.levels[0])
    for i, ((alpha, sigma), row) in enumerate(zip(plan.levels, plan.rows, strict=True)):
        on_x, (on_eps,) = row.noised.on_x, row.noised.weights
        there = on_x * alpha, on_x * sigma + on_eps  # α and σ at the timestep that the network leads to
        u = (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2) ** 0.5
        x0 = (at_level(u, *there) - there[1] / sigma * x) / (there[0] - there[1] / sigma * alpha)
        y = scheduler.implied_output(plan, i, x, x0)
        x = scheduler.advance(plan, i, y, x, None, scheduler.draw_noise(plan, i, x, generator)).sample
    assert_like_the_data(x)


def test_no_scheduler_is_left_out() -> None:
    found = [getattr(safelight, name) for name in safelight.__all__ if name.endswith("Scheduler")]
    names = {cls.__name__ for cls in found if issubclass(cls, Scheduler)}
    assert names == {"TCDScheduler", *(case.name for case in (*ORDERED, *DRAWN))}
