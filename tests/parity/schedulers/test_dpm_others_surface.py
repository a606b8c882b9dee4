"""The familiar surface of DPM-Solver in single steps, and upwards, where it is not that of the other solvers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ...helpers.compare import relative_difference
from ...helpers.sampling import familiar_run, network, start
from . import test_sigma_surface as surface
from .test_dpm import NOISY_END
from .test_dpm_others import INVERSE, SINGLESTEP

GRIDS = ["plain", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas"]

pytestmark = surface.pytestmark
on_every_grid = pytest.mark.parametrize("flag", GRIDS)


def _same_attributes(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    for attribute in ("order", "init_noise_sigma", "num_inference_steps", "step_index"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


@pytest.mark.parametrize("name", [SINGLESTEP, INVERSE])
def test_attributes(name: str) -> None:
    ours, theirs = surface._both(name, lambda_min_clipped=-4.0)
    for table in ("betas", "alphas", "alphas_cumprod"):
        assert torch.equal(getattr(ours, table), getattr(theirs, table))
    assert len(ours) == len(theirs)
    _same_attributes(ours, theirs)


@on_every_grid
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_attributes_of_a_run_in_single_steps(flag: str, end: str) -> None:
    config = {} if flag == "plain" else {flag: True}
    ours, theirs = surface._both(SINGLESTEP, 12, final_sigmas_type=end, **config)
    _same_attributes(ours, theirs)
    assert ours.begin_index == theirs.begin_index
    assert relative_difference(ours.sigmas, theirs.sigmas) <= 1e-6


@on_every_grid
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_attributes_of_a_run_upwards(flag: str, spacing: str) -> None:
    config = {} if flag == "plain" else {flag: True}
    for steps in (12, 61, 400):
        ours, theirs = surface._both(INVERSE, steps, timestep_spacing=spacing, lambda_min_clipped=-2.0, **config)
        _same_attributes(ours, theirs)
        # Theirs has a rest that no step uses, where timesteps came twice.
        assert relative_difference(ours.sigmas, theirs.sigmas[: len(ours.sigmas)]) <= 1e-6
        assert ours.noisiest_timestep == theirs.noisiest_timestep < 998


# noising


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("begin", [False, True])
def test_add_noise_on_a_timetable_in_single_steps(begin: bool, stepped: bool) -> None:
    surface.test_add_noise_on_a_timetable(SINGLESTEP, begin, stepped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@on_every_grid
def test_add_noise_upwards(flag: str, dtype: torch.dtype) -> None:
    results = []
    for scheduler in surface._both(INVERSE, 7, **({} if flag == "plain" else {flag: True})):
        clean, noise = start(1.0, 4).to(dtype), start(1.0, 5).to(dtype)
        results.append(scheduler.add_noise(clean, noise, scheduler.timesteps[[4, 2]]))
    assert results[0].dtype == dtype
    assert relative_difference(*results) <= 1e-6


# runs


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("kind", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("begin", range(1, 12))
def test_a_run_that_starts_inside_a_step(begin: int, order: int, kind: str, explicit: bool) -> None:
    """The order is lowered until the evaluations so far are enough."""
    runs = []
    for scheduler in surface._both(SINGLESTEP, 12, solver_order=order, algorithm_type=kind, solver_type="heun"):
        if explicit:
            scheduler.set_begin_index(begin)
        runs.append(familiar_run(scheduler, {"generator": torch.Generator().manual_seed(1)}, begin).samples)
    assert relative_difference(*runs) <= surface.TOLERANCE


@pytest.mark.parametrize("begin", [1, 2, 4, 9])
def test_a_run_upwards_from_a_noisy_sample(begin: int) -> None:
    runs = [familiar_run(scheduler, begin=begin).samples for scheduler in surface._both(INVERSE, 10)]
    assert relative_difference(*runs) <= surface.TOLERANCE


@pytest.mark.parametrize("order", [2, 3])
def test_a_run_of_every_length_in_single_steps(order: int) -> None:
    for end in ("zero", "sigma_min"):
        for steps in range(1, 14):
            pair = surface._both(SINGLESTEP, steps, solver_order=order, final_sigmas_type=end)
            runs = [familiar_run(scheduler).samples for scheduler in pair]
            assert relative_difference(*runs) <= surface.TOLERANCE, (end, steps)


def test_a_run_that_needs_lower_orders_leaves_the_next_one_alone() -> None:
    ours, theirs = surface._both(SINGLESTEP, **NOISY_END)
    fresh = surface._both(SINGLESTEP, 8, **NOISY_END)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    assert (ours.config["lower_order_final"], theirs.config["lower_order_final"]) == (False, True)
    assert relative_difference(*(familiar_run(scheduler).samples for scheduler in (ours, theirs))) <= surface.TOLERANCE
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
    runs = [familiar_run(scheduler).samples for scheduler in (ours, theirs, *fresh)]
    assert torch.equal(runs[0], runs[2])
    assert relative_difference(runs[0], runs[3]) <= surface.TOLERANCE
    assert relative_difference(runs[1], runs[3]) > 1e-4


@pytest.mark.parametrize("name", [SINGLESTEP, INVERSE])
def test_a_generator_for_each_image_which_ends_where_theirs_does(name: str) -> None:
    config = {"algorithm_type": "sde-dpmsolver++", "use_flow_sigmas": True}
    runs, after = [], []
    for scheduler in surface._both(name, 8, **config):
        generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
        runs.append(familiar_run(scheduler, {"generator": generators}).samples)
        after.append(torch.stack([torch.randn(3, generator=generator) for generator in generators]))
    assert relative_difference(*runs) <= surface.TOLERANCE
    assert torch.equal(*after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_keep_their_precision_beside_outputs_that_have_less(dtype: torch.dtype) -> None:
    results = []
    for scheduler in surface._both(SINGLESTEP, 8, solver_order=3):
        x = start(1.0).to(dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).bfloat16(), t, x).prev_sample
        results.append(x)
    assert results[0].dtype == results[1].dtype == dtype
    assert relative_difference(*results) <= 2**-8  # which of two neighbours an output is rounded to, rounding decides
