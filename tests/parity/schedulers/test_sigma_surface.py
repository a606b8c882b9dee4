"""The familiar surface of the further solvers in σ against diffusers."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

import safelight

from ...helpers.compare import relative_difference
from ...helpers.sampling import SHAPE, familiar_run, network

ANCESTRAL, HEUN, LMS = "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"
KDPM2, KDPM2_ANCESTRAL = "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
TWICE = [HEUN, KDPM2, KDPM2_ANCESTRAL]
NAMES = [ANCESTRAL, LMS, *TWICE]
TOLERANCE = 1e-5
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy")  # diffusers' use of it


def _both(name: str, steps: int | None = None, **config: Any) -> tuple[Any, Any]:
    pair = tuple(getattr(library, name)(**VP, **config) for library in (safelight, diffusers))
    for scheduler in pair if steps else ():
        scheduler.set_timesteps(steps)
    return pair


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _seeded(name: str) -> dict[str, Any]:
    seeded = "generator" in inspect.signature(getattr(diffusers, name).step).parameters
    return {"generator": torch.Generator().manual_seed(1)} if seeded else {}


def _same_tables(ours: Any, theirs: Any) -> None:
    assert ours.timesteps.shape == theirs.timesteps.shape
    # diffusers interpolates logarithms in float32, and has float64 timesteps before the first run
    assert (ours.timesteps - theirs.timesteps).abs().max() < 1e-3
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", NAMES)
def test_attributes(name: str, spacing: str) -> None:
    ours, theirs = _both(name, timestep_spacing=spacing)
    for table in ("betas", "alphas", "alphas_cumprod"):
        assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
    assert (ours.order, len(ours)) == (theirs.order, len(theirs))
    _same_tables(ours, theirs)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(12)
    _same_tables(ours, theirs)
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    assert ours.num_inference_steps == theirs.num_inference_steps == 12
    assert (ours.step_index, ours.begin_index) == (theirs.step_index, theirs.begin_index) == (None, None)


@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", [LMS, *TWICE])
def test_attributes_of_other_grids(name: str, flag: str) -> None:
    ours, theirs = _both(name, 12, **{flag: True})
    assert (ours.timesteps - theirs.timesteps).abs().max() < 1e-3
    assert relative_difference(ours.sigmas, theirs.sigmas) <= 1e-6


@pytest.mark.parametrize("name", TWICE)
def test_a_run_over_fewer_training_timesteps(name: str) -> None:
    ours, theirs = _both(name, timestep_spacing="leading")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7, None, num_train_timesteps=300)
    _same_tables(ours, theirs)
    assert ours.timesteps[0] == 6 * (300 // 7)


@pytest.mark.parametrize("steps", [61, 769])
@pytest.mark.parametrize("name", [ANCESTRAL, *TWICE])
def test_an_extra_last_timestep_unless_corrected(name: str, steps: int) -> None:
    ours, theirs = _both(name, steps, timestep_spacing="trailing")
    assert ours.timesteps[-1] == theirs.timesteps[-1] == -1
    runs = [familiar_run(scheduler, _seeded(name)).samples for scheduler in (ours, theirs)]
    assert relative_difference(*runs) <= TOLERANCE
    ours.set_timesteps(steps, corrected=True)
    assert ours.timesteps[-1] >= 0
    assert len(ours.timesteps) == (2 * steps - 1 if name in TWICE else steps)


def test_an_extra_last_timestep_of_the_same_sigma_in_a_multistep_run() -> None:
    ours, theirs = _both(LMS, 769, timestep_spacing="trailing")
    runs = [familiar_run(scheduler).samples for scheduler in (ours, theirs)]
    assert ours.sigmas[-2] == ours.sigmas[-3]
    assert not torch.isfinite(runs[1][-1]).any()
    assert relative_difference(runs[0][:-1], runs[1][:-1]) <= TOLERANCE
    ours.set_timesteps(769, corrected=True)
    assert relative_difference(runs[0][-1], familiar_run(ours).samples[-1]) <= 1e-3


# noising


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_add_noise(name: str, dtype: torch.dtype) -> None:
    ours, theirs = _both(name)
    clean, noise, times = _noise(4).to(dtype), _noise(5).to(dtype), torch.tensor([5.0, 950.0])
    results = [scheduler.add_noise(clean, noise, times) for scheduler in (ours, theirs)]
    assert results[0].dtype == dtype
    assert torch.equal(*results)


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_add_noise_on_a_timetable(name: str, begin: bool, stepped: bool) -> None:
    results = []
    for scheduler in _both(name, 7):
        if begin:
            scheduler.set_begin_index(4)
        x, t = _noise(3), scheduler.timesteps[4]
        if stepped:
            scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x)
        results.append(scheduler.add_noise(_noise(4), _noise(5), scheduler.timesteps[[4, 2]]))
        assert (scheduler.begin_index, scheduler.step_index) == (4 if begin else None, 5 if stepped else None)
    assert relative_difference(*results) <= 1e-6


# runs


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("begin", [1, 2, 4, 9])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_starts_inside_the_timetable(name: str, begin: int, explicit: bool) -> None:
    begin = 2 * begin if name in TWICE else begin  # between the two evaluations of a step, diffusers loses count
    runs = []
    for scheduler in _both(name, 10):
        if explicit:
            scheduler.set_begin_index(begin)
        runs.append(familiar_run(scheduler, _seeded(name), begin).samples)
    assert relative_difference(*runs) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run(name: str) -> None:
    runs = []
    for scheduler in _both(name, 6):
        familiar_run(scheduler, _seeded(name), end=4)
        scheduler.set_timesteps(8)
        runs.append(familiar_run(scheduler, _seeded(name)).samples)
    assert relative_difference(*runs) <= TOLERANCE


def test_the_order_may_change_on_the_way() -> None:
    runs = []
    for scheduler in _both(LMS, 12):
        x = _noise(3) * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps):
            y = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(y, t, x, order=[4, 2, 3][i // 4]).prev_sample
        runs.append(x)
    assert relative_difference(*runs) <= TOLERANCE


@pytest.mark.parametrize("name", [ANCESTRAL, KDPM2_ANCESTRAL])
def test_a_generator_for_each_image_which_ends_where_theirs_does(name: str) -> None:
    runs, after = [], []
    for scheduler in _both(name, 8):
        generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
        runs.append(familiar_run(scheduler, {"generator": generators}).samples)
        after.append(torch.stack([torch.randn(3, generator=generator) for generator in generators]))
    assert relative_difference(*runs) <= TOLERANCE
    assert torch.equal(*after)


@pytest.mark.parametrize("name", NAMES)
def test_tuples_and_signatures(name: str) -> None:
    ours, theirs = _both(name, 6)
    t, x, y = ours.timesteps[0], _noise(1), _noise(2)
    for scheduler in (ours, theirs):
        scheduler.scale_model_input(x, t)
    tuples = [scheduler.step(y, t, x, return_dict=False, **_seeded(name)) for scheduler in (ours, theirs)]
    assert all(relative_difference(one, other) <= 1e-6 for one, other in zip(*tuples, strict=True))
    for method in ("step", "set_timesteps"):
        taken = inspect.signature(getattr(theirs, method)).parameters
        assert set(taken) <= set(inspect.signature(getattr(ours, method)).parameters)


def test_the_order_by_position() -> None:
    results = []
    for scheduler in _both(LMS, 6):
        t, x = scheduler.timesteps[0], _noise(1)
        scheduler.scale_model_input(x, t)
        results.append(scheduler.step(_noise(2), t, x, 2, False)[0])
    assert relative_difference(*results) <= 1e-6


# configs


def _entries(scheduler: Any) -> dict[str, Any]:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize("source", ["EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("name", NAMES)
def test_conversion_from_other_classes_and_back(name: str, source: str) -> None:
    chains = []
    for library in (safelight, diffusers):
        first = getattr(library, source)(steps_offset=1, **VP)
        second = getattr(library, name).from_config(first.config)
        chains.append([first, second, getattr(library, source).from_config(second.config)])
    for one, other in zip(*chains, strict=True):
        assert _entries(one) == _entries(other)
        assert repr(one) == repr(other)
    ours, theirs = chains[0][1], chains[1][1]
    assert {cls.__name__ for cls in ours.compatibles} == {c.__name__ for c in theirs.compatibles} & {*safelight.__all__}
