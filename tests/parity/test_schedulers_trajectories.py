"""Whole trajectories against diffusers: every option alone and every pair of options, every step.

The tables below are checked against the signatures of diffusers' constructors, `set_timesteps` and `step`, so an option
cannot be forgotten.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch

import safelight
from safelight.errors import SafelightError

from ..helpers.compare import relative_difference
from ..helpers.pairwise import pairwise, singles
from ..helpers.sampling import SHAPE, Run, familiar_run, pure_run

TOLERANCE = 1e-5
GIVEN = "given by the test"

BETAS = {
    "num_train_timesteps": [1000, 200],
    "beta_start": [0.0001, 0.002],
    "beta_end": [0.02, 0.012],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "trained_betas": [None, GIVEN],
}
LIMITS = {
    "thresholding": [False, True],
    "dynamic_thresholding_ratio": [0.995, 0.8],
    "clip_sample_range": [1.0, 0.6],
    "sample_max_value": [1.0, 1.7],
    "clip_sample": [True, False],
}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
# Options of the calls; `timetable` is what `set_timesteps` gets: a number of steps, or fractions of the training time.
COVERED_BY_TIMETABLE = {"num_inference_steps", "timesteps", "sigmas"}
CUSTOM_TIMESTEPS = {"timesteps": [0.95, 0.7, 0.66, 0.3, 0.02]}
CUSTOM_SIGMAS = {"sigmas": [12.0, 5.0, 2.0, 0.7, 0.1, 0.0]}

TABLES: dict[str, dict[str, list[Any]]] = {
    "DDPMScheduler": {
        **BETAS,
        "beta_schedule": [*BETAS["beta_schedule"], "sigmoid", "laplace"],
        "variance_type": [
            "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range",
        ],
        "prediction_type": PREDICTIONS,
        **LIMITS,
        "timestep_spacing": ["leading", "linspace", "trailing"],
        "steps_offset": [0, 1],
        "rescale_betas_zero_snr": [False, True],
        "timetable": [10, 7, 23, CUSTOM_TIMESTEPS],
    },
    "DDIMScheduler": {
        **BETAS,
        **LIMITS,
        "set_alpha_to_one": [True, False],
        "steps_offset": [0, 1],
        "prediction_type": PREDICTIONS,
        "timestep_spacing": ["leading", "linspace", "trailing"],
        "rescale_betas_zero_snr": [False, True],
        "timetable": [10, 7, 23],
        "eta": [0.0, 0.6, 1.0],
        "use_clipped_model_output": [False, True],
        "variance_noise": [None, GIVEN],
    },
    "PNDMScheduler": {
        **BETAS,
        "skip_prk_steps": [False, True],
        "set_alpha_to_one": [False, True],
        "prediction_type": ["epsilon", "v_prediction"],
        "timestep_spacing": ["leading", "linspace", "trailing"],
        "steps_offset": [0, 1],
        "timetable": [10, 7, 23, 4, 3, 1],
    },
    "EulerDiscreteScheduler": {
        **BETAS,
        "prediction_type": [*PREDICTIONS, "original_sample"],
        "interpolation_type": ["linear", "log_linear"],
        "use_karras_sigmas": [False, True],
        "use_exponential_sigmas": [False, True],
        "use_beta_sigmas": [False, True],
        "sigma_min": [None, 0.05],
        "sigma_max": [None, 9.0],
        "timestep_spacing": ["linspace", "leading", "trailing"],
        "timestep_type": ["discrete", "continuous"],
        "steps_offset": [0, 1],
        "rescale_betas_zero_snr": [False, True],
        "final_sigmas_type": ["zero", "sigma_min"],
        "timetable": [10, 7, 23, CUSTOM_TIMESTEPS, CUSTOM_SIGMAS],
        "s_churn": [0.0, 3.0, 100.0],
        "s_tmin": [0.0, 0.3],
        "s_tmax": [float("inf"), 4.0],
        "s_noise": [1.0, 1.1],
    },
}  # fmt: skip


def _parameters(method: Callable, *left_out: str) -> set[str]:
    return set(inspect.signature(method).parameters) - {"self", *left_out}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_has_every_option(name: str) -> None:
    theirs, ours = getattr(diffusers, name), getattr(safelight, name)
    assert inspect.signature(ours).parameters.keys() == inspect.signature(theirs).parameters.keys()
    options = _parameters(theirs) | _parameters(theirs.set_timesteps, "device")
    options |= _parameters(theirs.step, "model_output", "timestep", "sample", "generator", "return_dict")
    assert options - COVERED_BY_TIMETABLE == set(TABLES[name]) - {"timetable"}
    for option, parameter in inspect.signature(theirs).parameters.items():
        assert TABLES[name][option][0] == parameter.default == inspect.signature(ours).parameters[option].default


# where diffusers refuses or goes wrong

Config = dict[str, Any]


class Reason(NamedTuple):
    """Combinations that diffusers refuses or turns non-finite: why, which, and what is true of ours instead."""

    why: str
    applies: Callable[[str, Config], bool]
    ours: str  # "refuses", "is right" (as diffusers with the changes `like`), or "is finite" (right by analysis)
    like: Config = {}  # noqa: RUF012


def _singular(name: str, c: Config) -> bool:
    zero_snr = c.get("rescale_betas_zero_snr") and name in ("DDPMScheduler", "DDIMScheduler")
    reached = c["timestep_spacing"] != "leading" and not isinstance(c["timetable"], dict)
    return zero_snr and reached and c["prediction_type"] == "epsilon" and (c["thresholding"] or not c["clip_sample"])


def _flags(c: Config) -> int:
    return sum(bool(c.get(flag)) for flag in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))


REASONS = [
    Reason("only one sigma grid can be chosen", lambda name, c: _flags(c) > 1, "refuses"),
    Reason(
        "custom timesteps contradict a sigma grid",
        lambda name, c: c["timetable"] is CUSTOM_TIMESTEPS and _flags(c) == 1,
        "refuses",
    ),
    Reason(
        "custom timesteps contradict continuous ones",
        lambda name, c: (
            c["timetable"] is CUSTOM_TIMESTEPS
            and c.get("timestep_type") == "continuous"
            and c["prediction_type"] == "v_prediction"
        ),
        "refuses",
    ),
    Reason(
        "Runge-Kutta needs four steps",
        lambda name, c: name == "PNDMScheduler" and not c["skip_prk_steps"] and c["timetable"] in (1, 3),
        "refuses",
    ),
    Reason("an epsilon network says nothing about x0 where the signal is zero", _singular, "refuses"),
    Reason(
        "diffusers takes the root of a logarithm; the type means what fixed_large means",
        lambda name, c: c.get("variance_type") == "fixed_large_log",
        "is right",
        {"variance_type": "fixed_large"},
    ),
]

# Combinations of three and more that matter or go wrong; the reason, if there is one, depends on rounding or numbers.
SQUARE_ROOT = Reason("rounding takes the root of a variance below zero", lambda name, c: False, "is finite")
SAME_START = Reason(
    "sigmas above the trained ones give the first two steps one timestep; diffusers starts at the second, and runs out",
    lambda name, c: False,
    "is right",
    {"begin_index": 0},
)
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
CONTINUOUS = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
FURTHER: list[tuple[str, Config, Reason | None]] = [
    ("DDPMScheduler", ZERO_SNR, None),
    ("DDPMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "timetable": 23}, None),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace", "timetable": 23}, None),
    ("DDIMScheduler", {**ZERO_SNR, "clip_sample": False, "eta": 0.6}, None),
    ("DDIMScheduler", {**ZERO_SNR, "eta": 1.0}, SQUARE_ROOT),
    ("EulerDiscreteScheduler", {**ZERO_SNR, "timetable": 4, "s_churn": 3.0, "s_noise": 1.1}, None),
    ("EulerDiscreteScheduler", {**CONTINUOUS, "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}, None),
    ("EulerDiscreteScheduler", {**CONTINUOUS, "interpolation_type": "log_linear"}, None),
    ("EulerDiscreteScheduler", {**CONTINUOUS, "timetable": CUSTOM_SIGMAS}, None),
    ("EulerDiscreteScheduler", {"num_train_timesteps": 200, "timetable": CUSTOM_SIGMAS}, SAME_START),
]


# running both


def _attempt(library: Any, name: str, combination: Config) -> tuple[Run, Any, Config]:
    config = {option: values[0] for option, values in TABLES[name].items()} | combination
    train = config["num_train_timesteps"]
    if config["trained_betas"] is GIVEN:
        config["trained_betas"] = np.linspace(0.001, 9 / train, train)
    constructor = inspect.signature(getattr(diffusers, name)).parameters
    scheduler = getattr(library, name)(**{key: value for key, value in config.items() if key in constructor})
    timetable = config["timetable"]
    if timetable is CUSTOM_TIMESTEPS:
        timetable = {"timesteps": [int(fraction * train) for fraction in timetable["timesteps"]]}
    scheduler.set_timesteps(**(timetable if isinstance(timetable, dict) else {"num_inference_steps": timetable}))
    if "begin_index" in config:
        scheduler.set_begin_index(config["begin_index"])
    calls = set(TABLES[name]) - set(constructor) - {"timetable"}
    step = {key: value for key, value in config.items() if key in calls}
    if step.pop("variance_noise", None) is GIVEN:
        step["variance_noise"] = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    elif name != "PNDMScheduler":
        step["generator"] = torch.Generator().manual_seed(1)
    return familiar_run(scheduler, step, learned=config.get("variance_type", "")), scheduler, step


def _differences(ours: Run, theirs: Run) -> dict[str, float]:
    return {
        field: relative_difference(getattr(ours, field), getattr(theirs, field))
        for field in Run._fields
        if getattr(theirs, field) is not None
    }


def _reason(name: str, combination: Config) -> Reason | None:
    config = {option: values[0] for option, values in TABLES[name].items()} | combination
    return next((reason for reason in REASONS if reason.applies(name, config)), None)


CASES = {
    f"{name}-{kind}-{i}": (name, combination, _reason(name, combination))
    for name, table in TABLES.items()
    for kind, cover in (("single", singles(table)), ("pairs", pairwise(table)))
    for i, combination in enumerate(cover)
} | {f"{case[0]}-further-{i}": case for i, case in enumerate(FURTHER)}


@pytest.mark.parametrize("case", CASES)
def test_every_step_equals(case: str) -> None:
    name, combination, reason = CASES[case]
    like = combination
    if reason is not None:
        with pytest.raises((ValueError, IndexError, AssertionError)):
            wrong, _, _ = _attempt(diffusers, name, combination)
            assert torch.isfinite(wrong.samples).all()
        if reason.ours == "refuses":
            with pytest.raises(SafelightError):
                _attempt(safelight, name, combination)
            return
        like = combination | reason.like
    ours, scheduler, step = _attempt(safelight, name, combination)
    assert torch.isfinite(ours.samples).all()
    if reason is None or reason.ours != "is finite":
        theirs, _, _ = _attempt(diffusers, name, like)
        assert torch.isfinite(theirs.samples).all()
        assert max(_differences(ours, theirs).values()) <= TOLERANCE, (combination, _differences(ours, theirs))

    noise, generator = step.pop("variance_noise", None), torch.Generator().manual_seed(1)
    pure = pure_run(scheduler, scheduler._active, generator, noise, learned=scheduler.config.get("variance_type", ""))
    assert torch.equal(pure.samples, ours.samples)
    assert torch.equal(pure.originals, ours.originals)


def test_every_reason_occurs() -> None:
    found = [reason for _, _, reason in CASES.values()]
    assert None in found and all(reason in found for reason in REASONS)


def test_every_pair_of_values_meets() -> None:
    for name, table in TABLES.items():
        cover = [combination for case, (_, combination, _) in CASES.items() if case.startswith(f"{name}-pairs")]
        for (a, xs), (b, ys) in itertools.combinations(table.items(), 2):
            met = {(xs.index(row[a]), ys.index(row[b])) for row in cover}
            assert met == set(itertools.product(range(len(xs)), range(len(ys)))), (name, a, b)
