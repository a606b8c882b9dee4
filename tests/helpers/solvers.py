"""Every exported scheduler, so that none can be forgotten, with configs and options that take it through its code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

import safelight
from safelight.schedulers.base import Scheduler

from .sampling import SHAPE, network

NAMES = [
    name
    for name, found in ((name, getattr(safelight, name)) for name in safelight.__all__)
    if isinstance(found, type) and issubclass(found, Scheduler)
]


class Solver(NamedTuple):
    """A scheduler and how its runs are planned."""

    name: str
    config: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012
    steps: int | None = None  # where no other number is possible

    def make(self) -> Any:
        return getattr(safelight, self.name)(**self.config)

    def plan(self, scheduler: Any, steps: int = 7, **further: Any) -> Any:
        return scheduler.plan(self.steps or steps, **self.options, **further)

    def state(self, scheduler: Any, plan: Any) -> Any:
        """The state that a run begins with."""
        if self.name != "RePaintScheduler":
            return scheduler.initial_state(plan)
        picture = torch.linspace(-1, 1, SHAPE[2] * SHAPE[3]).reshape(SHAPE[2:]).expand(SHAPE)
        return scheduler.initial_state(plan, picture, (picture > 0).float())

    def __str__(self) -> str:
        shown = {**self.config, **self.options}.items()
        words = [f"{key}={_shown(value)}" for key, value in shown]
        return ",".join([self.name.removesuffix("Scheduler"), *words])


def _shown(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Scheduler) else getattr(value, "__name__", str(value))


def _half(t: Any) -> float:
    return 0.5


_DPM = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
_CHURN = {"s_churn": 3.0, "s_tmin": 0.01, "s_noise": 1.01}
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
_LIMITED = {"thresholding": True, "sample_max_value": 1.5}

# Of each class, beside its defaults: (config, options of `plan`).
_FURTHER: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "CMStochasticIterativeScheduler": [({"clip_denoised": False}, {})],
    "CosineDPMSolverMultistepScheduler": [({"solver_order": 1, "prediction_type": "epsilon"}, {})],
    "DDIMScheduler": [
        ({"prediction_type": "v_prediction"}, {"eta": 0.5, "use_clipped_model_output": True}),
        ({"clip_sample": False, "timestep_spacing": "trailing"}, {"corrected": True}),
    ],
    "DDPMScheduler": [
        ({"variance_type": "learned_range", **_LIMITED}, {}),
        ({"variance_type": "learned", "prediction_type": "sample"}, {}),
        ({"variance_type": "fixed_large", "clip_sample": False}, {"corrected": True}),
    ],
    "DEISMultistepScheduler": [({"solver_order": 3, **_FLOW}, {}), (_LIMITED, {})],
    "DPMSolverMultistepScheduler": [
        *(({"algorithm_type": kind, "solver_order": 2, "final_sigmas_type": "sigma_min"}, {}) for kind in _DPM),
        ({"solver_order": 3, "solver_type": "heun", "use_karras_sigmas": True, "euler_at_final": True}, {}),
        ({"solver_order": 3, "variance_type": "learned", **_LIMITED}, {"corrected": True}),
        ({**_FLOW, "use_dynamic_shifting": True, "time_shift_type": "exponential"}, {"mu": 0.7}),
    ],
    "DPMSolverSinglestepScheduler": [
        ({"solver_order": order, "algorithm_type": kind, "final_sigmas_type": "sigma_min"}, {})
        for order, kind in ((3, "dpmsolver++"), (3, "dpmsolver"), (2, "sde-dpmsolver++"))
    ],
    "DPMSolverSDEScheduler": [
        ({"noise_sampler_seed": 4, "use_karras_sigmas": True}, {"s_noise": 0.9}),
        ({"noise_sampler_seed": [4, 7]}, {}),
    ],
    "EDMDPMSolverMultistepScheduler": [({"algorithm_type": "sde-dpmsolver++", **_LIMITED}, {})],
    "EDMEulerScheduler": [({"prediction_type": "v_prediction"}, _CHURN)],
    "EulerAncestralDiscreteScheduler": [({"prediction_type": "v_prediction"}, {})],
    "EulerDiscreteScheduler": [
        ({"prediction_type": "v_prediction", "use_karras_sigmas": True}, _CHURN),
        ({"timestep_type": "continuous", "prediction_type": "v_prediction"}, {"corrected": True}),
    ],
    "FlowMatchEulerDiscreteScheduler": [
        ({"stochastic_sampling": True, "shift": 2.0}, {}),
        ({"use_dynamic_shifting": True, "use_karras_sigmas": True}, {"mu": 0.7}),
    ],
    "FlowMatchHeunDiscreteScheduler": [({}, {**_CHURN, "corrected": True})],
    "HeunDiscreteScheduler": [({"clip_sample": True, "prediction_type": "v_prediction"}, {})],
    "IPNDMScheduler": [({}, {"corrected": True})],
    "KDPM2AncestralDiscreteScheduler": [({"use_karras_sigmas": True}, {})],
    "KDPM2DiscreteScheduler": [({"prediction_type": "v_prediction"}, {})],
    "LCMScheduler": [({}, {"original_inference_steps": 100, "strength": 0.9})],
    "LMSDiscreteScheduler": [({"use_exponential_sigmas": True}, {"order": 2})],
    "PNDMScheduler": [
        ({"skip_prk_steps": True, "prediction_type": "v_prediction"}, {}),
        ({"skip_prk_steps": True}, {"corrected": True}),
    ],
    "RePaintScheduler": [({"eta": 0.4}, {"jump_length": 2, "jump_n_sample": 3})],
    "SASolverScheduler": [
        ({"tau_func": _half, "predictor_order": 3, "corrector_order": 4}, {}),
        ({"algorithm_type": "noise_prediction", "corrector_order": 0}, {}),
    ],
    "ScoreSdeVeScheduler": [({}, {"corrected": True})],
    "TCDScheduler": [({}, {"eta": 0.0}), ({"prediction_type": "v_prediction"}, {"eta": 1.0})],
    "UniPCMultistepScheduler": [
        ({"solver_order": 3, "solver_type": "bh1", "predict_x0": False}, {}),
        ({"solver_order": 3, "disable_corrector": [0, 2], **_LIMITED}, {}),
        ({"solver_p": ("DEISMultistepScheduler", {})}, {}),
    ],
}


def _solvers() -> Iterator[Solver]:
    yield Solver("FlowMatchLCMScheduler", {"scale_factors": [1.5, 2.0]}, steps=3)
    for name in NAMES:
        yield Solver(name)
        for config, options in _FURTHER.get(name, ()):
            given = dict(config)
            if "solver_p" in given:
                kind, settings = given["solver_p"]
                given["solver_p"] = getattr(safelight, kind)(**settings)
            yield Solver(name, given, options)


SOLVERS = {str(solver): solver for solver in _solvers()}


def variance(scheduler: Any) -> str:
    """The kind of variance that the scheduler wants of its network, or nothing."""
    learned = scheduler.config.get("variance_type") or ""
    return learned if learned.startswith("learned") else ""


def predicted(scheduler: Any, plan: Any, i: int, x: torch.Tensor) -> torch.Tensor:
    """What a network says of x at evaluation `i`."""
    return network(scheduler.scale_input(plan, i, x), plan.timesteps[i], variance(scheduler))


def taken(scheduler: Any, plan: Any, i: int, x: torch.Tensor, state: Any, generator: Any) -> Any:
    """One step of a run."""
    y = predicted(scheduler, plan, i, x)
    return scheduler.advance(plan, i, y, x, state, scheduler.draw_noise(plan, i, x, generator, y.dtype))


def run_from(scheduler: Any, plan: Any, state: Any, generator: Any) -> list[torch.Tensor]:
    """The samples after each step of a whole run."""
    x, samples = started(plan), []
    for i in range(len(plan)):
        x, state, _ = taken(scheduler, plan, i, x, state, generator)
        samples.append(x)
    return samples


def started(plan: Any, seed: int = 0) -> torch.Tensor:
    """The sample that a run begins with."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * plan.init_noise_sigma
