"""The familiar surface of the solvers in log-SNR against diffusers: the tests of those in σ, and what differs."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import diffusers
import pytest
import torch

import safelight

from ...helpers.compare import relative_difference
from ...helpers.sampling import familiar_run, network
from .. import test_schedulers_surface as general
from . import test_sigma_surface as surface

NAMES = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"]
FURTHER = ["DPMSolverSinglestepScheduler", "DPMSolverMultistepInverseScheduler"]  # which have a timetable of their own

pytestmark = surface.pytestmark
each, every = (pytest.mark.parametrize("name", names) for names in (NAMES, NAMES + FURTHER))


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("flag", ["plain", "use_karras_sigmas", "use_exponential_sigmas", "use_flow_sigmas"])
@each
def test_attributes_of_a_run(name: str, flag: str, spacing: str) -> None:
    config = {} if flag == "plain" else {flag: True}
    ours, theirs = surface._both(name, 12, timestep_spacing=spacing, **config)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    assert relative_difference(ours.sigmas, theirs.sigmas) <= 1e-6
    for attribute in ("order", "init_noise_sigma", "num_inference_steps", "step_index", "begin_index"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


@each
def test_an_extra_last_timestep_unless_corrected(name: str) -> None:
    ours, theirs = surface._both(name, 61, timestep_spacing="trailing")
    assert ours.timesteps[-1] == theirs.timesteps[-1] == -1
    runs = [familiar_run(scheduler, surface._seeded(name)).samples for scheduler in (ours, theirs)]
    assert relative_difference(*runs) <= surface.TOLERANCE
    ours.set_timesteps(61, corrected=True)
    assert torch.equal(ours.timesteps, theirs.timesteps[:-1])


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("stepped", [False, True])
@each
def test_add_noise_on_a_timetable(name: str, begin: bool, stepped: bool) -> None:
    surface.test_add_noise_on_a_timetable(name, begin, stepped)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("begin", [1, 2, 4, 9])
@each
def test_a_run_that_starts_inside_the_timetable(name: str, begin: int, explicit: bool) -> None:
    surface.test_a_run_that_starts_inside_the_timetable(name, begin, explicit)


@every
def test_a_second_run(name: str) -> None:
    surface.test_a_second_run(name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every
def test_half_precision_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    general.test_half_precision_keeps_its_dtype(name, dtype)


@every
def test_tuples_begin_with_the_sample(name: str) -> None:
    results = []
    for scheduler in surface._both(name, 6):
        t, x, y = scheduler.timesteps[0], surface._noise(1), surface._noise(2)
        results.append(scheduler.step(y, t, x, return_dict=False, **surface._seeded(name))[0])
    assert relative_difference(*results) <= 1e-6


@every
def test_signatures(name: str) -> None:
    for method in ("step", "set_timesteps"):
        ours, theirs = (signature(getattr(getattr(library, name), method)) for library in (safelight, diffusers))
        assert {*theirs.parameters} - {"args", "kwargs"} <= {*ours.parameters}


@pytest.mark.parametrize("source", ["EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler", *NAMES])
@every
def test_conversion_from_other_classes_and_back(name: str, source: str) -> None:
    surface.test_conversion_from_other_classes_and_back(name, source)


@every
def test_files_round_trip_between_the_libraries(name: str, tmp_path: Path) -> None:
    general.test_files_round_trip_between_the_libraries(name, tmp_path)


@every
def test_samples_keep_their_precision_beside_an_output_of_less(name: str) -> None:
    results = []
    for scheduler in surface._both(name, 5):
        x = surface._noise(3)
        for t in scheduler.timesteps[:3]:
            x = scheduler.step(network(x, t).bfloat16(), t, x, **surface._seeded(name)).prev_sample
        results.append(x)
    assert results[0].dtype == results[1].dtype == torch.float32
    assert relative_difference(*results) <= 4 * torch.finfo(torch.bfloat16).eps  # theirs rounds products to it
