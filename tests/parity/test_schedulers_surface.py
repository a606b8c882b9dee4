"""The familiar surface against diffusers: tables, noising, starts inside the timetable, configs, files, signatures."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import safelight
from safelight.errors import InputError

from ..helpers.compare import relative_difference
from ..helpers.sampling import SHAPE, familiar_run, network, noised_on_a_timetable

NAMES = ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"]
# Those that the files test_*_surface.py in schedulers/ look at for the most part.
SIGMA_NAMES = [
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
]
TOLERANCE = 1e-5


def _both(name: str, steps: int | None = None, **config: Any) -> tuple[Any, Any]:
    pair = [getattr(library, name)(**config) for library in (safelight, diffusers)]
    for scheduler in pair if steps else []:
        scheduler.set_timesteps(steps)
    return tuple(pair)


def _noise(seed: int = 3) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _seeded(name: str) -> dict[str, Any]:
    """A fresh generator where the step of diffusers takes one."""
    takes = inspect.signature(getattr(diffusers, name).step).parameters
    return {"generator": torch.Generator().manual_seed(1)} if "generator" in takes else {}


@pytest.mark.parametrize("name", NAMES)
def test_attributes_before_set_timesteps(name: str) -> None:
    ours, theirs = _both(name, beta_schedule="scaled_linear")
    tables = ["betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "sigmas", "timesteps"]
    for table in [t for t in tables if getattr(theirs, t, None) is not None]:
        assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
        assert getattr(ours, table).dtype == getattr(theirs, table).dtype
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    assert (ours.order, len(ours), ours.num_inference_steps) == (theirs.order, len(theirs), None)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", NAMES)
def test_attributes_after_set_timesteps(name: str, spacing: str) -> None:
    ours, theirs = _both(name, 12, timestep_spacing=spacing)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    assert ours.num_inference_steps == theirs.num_inference_steps == 12
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    if hasattr(theirs, "sigmas"):
        assert torch.equal(ours.sigmas, theirs.sigmas)


@pytest.mark.parametrize("steps", [61, 201, 769])
@pytest.mark.parametrize("name", NAMES)
def test_trailing_spacing_has_an_extra_timestep_unless_corrected(name: str, steps: int) -> None:
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    ours, theirs = _both(name, steps, timestep_spacing="trailing", **config)
    assert ours.timesteps[-1] == theirs.timesteps[-1] == -1
    if steps == 61:
        runs = [familiar_run(scheduler, _seeded(name)) for scheduler in (ours, theirs)]
        assert relative_difference(runs[0].samples, runs[1].samples) <= TOLERANCE
    ours.set_timesteps(steps, corrected=True)
    assert ours.timesteps[-1] >= 0
    assert torch.equal(ours.timesteps, theirs.timesteps[:-1])


# noising


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_add_noise_and_velocity(name: str, dtype: torch.dtype) -> None:
    ours, theirs = _both(name)
    clean, noise = _noise(4).to(dtype), _noise(5).to(dtype)
    times = torch.tensor([5, 950]) if name != "EulerDiscreteScheduler" else torch.tensor([5.0, 950.0])
    for method in ("add_noise", "get_velocity") if hasattr(theirs, "get_velocity") else ("add_noise",):
        one, other = (getattr(scheduler, method)(clean, noise, times) for scheduler in (ours, theirs))
        assert one.dtype == dtype
        assert torch.equal(one, other), method


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("stepped", [False, True])
def test_add_noise_on_a_timetable(begin: bool, stepped: bool) -> None:
    pair = _both("EulerDiscreteScheduler", 7, use_karras_sigmas=True)
    results = [noised_on_a_timetable(scheduler, begin, stepped) for scheduler in pair]
    assert relative_difference(*results) <= 1e-6


def test_velocity_of_sigma_solvers_is_of_the_timestep_when_corrected() -> None:
    ours, theirs = _both("EulerDiscreteScheduler")
    ddpm = safelight.DDPMScheduler()
    clean, noise, times = _noise(4), _noise(5), torch.tensor([10.0, 700.0])
    right = ddpm.get_velocity(clean, noise, times.long())
    assert relative_difference(theirs.get_velocity(clean, noise, times), right) > 0.1
    assert torch.equal(ours.get_velocity(clean, noise, times), theirs.get_velocity(clean, noise, times))
    assert relative_difference(ours.get_velocity(clean, noise, times, corrected=True), right) <= 1e-6


def test_half_precision_noise_level_is_exact_when_corrected() -> None:
    ours, theirs = _both("DDPMScheduler")
    zero, noise, times = torch.zeros(SHAPE).bfloat16(), _noise().bfloat16(), torch.tensor([0, 3])
    right = ours.add_noise(zero.float(), noise.float(), times)
    assert relative_difference(theirs.add_noise(zero, noise, times).float(), right) > 0.1
    assert relative_difference(ours.add_noise(zero, noise, times, corrected=True).float(), right) < 2**-7


# steps out of the ordinary


@pytest.mark.parametrize("begin", [1, 2, 4, 9])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_starts_inside_the_timetable(name: str, begin: int) -> None:
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pair = _both(name, 10, **config)
    runs = []
    for scheduler in pair:
        if name == "EulerDiscreteScheduler" and begin > 2:
            scheduler.set_begin_index(begin)
        runs.append(familiar_run(scheduler, _seeded(name), begin))
    assert relative_difference(runs[0].samples, runs[1].samples) <= TOLERANCE


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_single_steps_at_any_time_and_in_any_order(name: str) -> None:
    ours, theirs = _both(name)
    if name == "DDIMScheduler":  # theirs needs to know the length of a step
        ours.set_timesteps(50)
        theirs.set_timesteps(50)
    for t in (999, 2, 2, 500, torch.tensor(17), 0) if name == "DDPMScheduler" else (3, 999, torch.tensor(17), 0):
        x, y = _noise(1), _noise(2)
        one, other = (
            s.step(model_output=y, timestep=t, sample=x, generator=torch.Generator().manual_seed(1)).prev_sample
            for s in (ours, theirs)
        )
        assert relative_difference(one, other) <= 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy")  # diffusers' use of it
@pytest.mark.parametrize("name", [*NAMES, *SIGMA_NAMES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    special = {"PNDMScheduler": {"skip_prk_steps": True}, "DPMSolverSDEScheduler": {"noise_sampler_seed": 4}}
    pair = _both(name, 5, **special.get(name, {}))
    results = []
    for scheduler in pair:
        x = _noise().to(dtype) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            y = network(scheduler.scale_model_input(x, t).float(), t).to(dtype)
            x = scheduler.step(y, t, x, **_seeded(name)).prev_sample
            assert x.dtype == dtype
        results.append(x.float())
    assert relative_difference(*results) <= 16 * torch.finfo(dtype).eps


def test_a_generator_for_each_image() -> None:
    runs = []
    for scheduler in _both("DDPMScheduler", 8):
        generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
        runs.append(familiar_run(scheduler, {"generator": generators}).samples)
    assert relative_difference(*runs) <= 1e-6


def test_previous_timestep() -> None:
    ours, theirs = _both("DDPMScheduler")
    assert ours.previous_timestep(7) == theirs.previous_timestep(7) == 6
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    for t in (900, torch.tensor(300), 0):
        assert int(ours.previous_timestep(t)) == int(theirs.previous_timestep(t))


@pytest.mark.parametrize("name", NAMES)
def test_tuples_positions_and_signatures(name: str) -> None:
    ours, theirs = _both(name, 6, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
    t, x, y = ours.timesteps[0], _noise(1), _noise(2)
    for scheduler in (ours, theirs):
        scheduler.scale_model_input(x, t)
    tuples = [s.step(y, t, x, return_dict=False) for s in (ours, theirs)]
    assert all(isinstance(values, tuple) for values in tuples)
    assert set(inspect.signature(theirs.step).parameters) <= set(inspect.signature(ours.step).parameters)
    taken = set(inspect.signature(theirs.set_timesteps).parameters)
    assert taken <= set(inspect.signature(ours.set_timesteps).parameters)
    assert {"timesteps", "sigmas"} & taken <= set(inspect.signature(ours.plan).parameters)


def test_options_by_position() -> None:
    results = []
    for scheduler in _both("DDIMScheduler", 6):
        t, generator = scheduler.timesteps[0], torch.Generator().manual_seed(1)
        results.append(scheduler.step(_noise(2), t, _noise(1), 0.7, True, generator)[0])
    assert relative_difference(*results) <= 1e-6


# configs and files


def _entries(scheduler: Any) -> dict[str, Any]:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_conversion_between_classes_and_back(source: str, target: str) -> None:
    given = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    chains = []
    for library in (safelight, diffusers):
        first = getattr(library, source)(**given)
        second = getattr(library, target).from_config(first.config)
        third = getattr(library, source).from_config(second.config)
        chains.append([first, second, third])
    for one, other in zip(*chains, strict=True):
        assert _entries(one) == _entries(other)
        assert repr(one) == repr(other)


def test_compatibles_are_those_of_diffusers_that_exist() -> None:
    ours, theirs = _both("PNDMScheduler")
    names = {cls.__name__ for cls in ours.compatibles}
    assert set(NAMES) <= names
    assert names == {cls.__name__ for cls in theirs.compatibles} & set(safelight.__all__)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy")  # diffusers' use of it
@pytest.mark.parametrize("name", [*NAMES, *SIGMA_NAMES])
def test_files_round_trip_between_the_libraries(name: str, tmp_path: Path) -> None:
    config = {"beta_schedule": "scaled_linear", "trained_betas": None, "prediction_type": "v_prediction"}
    ours, theirs = _both(name, **config)
    ours.save_pretrained(tmp_path / "ours" / "scheduler")
    theirs.save_pretrained(tmp_path / "theirs")
    read_by_them = getattr(diffusers, name).from_pretrained(tmp_path / "ours", subfolder="scheduler")
    read_by_us = getattr(safelight, name).from_pretrained(tmp_path / "theirs")
    assert _entries(read_by_them) == _entries(read_by_us) == _entries(ours) == _entries(theirs)
    text = [(tmp_path / where / "scheduler_config.json").read_text() for where in ("ours/scheduler", "theirs")]
    assert text[0] == text[1]


def test_overrides_and_unused_arguments_when_loading(tmp_path: Path) -> None:
    safelight.DDIMScheduler().save_pretrained(tmp_path)
    scheduler = safelight.EulerDiscreteScheduler.from_pretrained(tmp_path, use_karras_sigmas=True)
    assert scheduler.config.use_karras_sigmas
    assert scheduler.config.timestep_spacing == "leading"  # written out in the file, though it was a default
    again, unused = safelight.DDIMScheduler.from_pretrained(tmp_path, return_unused_kwargs=True, foo=3)
    assert isinstance(again, safelight.DDIMScheduler)
    assert unused == {"foo": 3}
    with pytest.raises(InputError):
        scheduler.set_timesteps(5, timesteps=[3, 2])
