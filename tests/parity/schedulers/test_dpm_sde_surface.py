"""The familiar surface of DPM-Solver SDE against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import safelight
from safelight.errors import InputError

from ...helpers.compare import relative_difference
from ...helpers.sampling import familiar_run, network, start

NAME = "DPMSolverSDEScheduler"


def _both(steps: int | None = None, **config: Any) -> list[Any]:
    pair = [getattr(library, NAME)(**{"noise_sampler_seed": 4, **config}) for library in (safelight, diffusers)]
    for scheduler in pair if steps else ():
        scheduler.set_timesteps(steps)
    return pair


@pytest.mark.parametrize("steps", [None, 9])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_attributes(steps: int | None, spacing: str) -> None:
    ours, theirs = _both(steps, timestep_spacing=spacing)
    for table in ("betas", "alphas", "alphas_cumprod", "sigmas"):
        assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
    assert ours.timesteps.dtype == theirs.timesteps.dtype == torch.float64
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-4)
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    assert (ours.order, len(ours)) == (theirs.order, len(theirs))


@pytest.mark.parametrize("begin", [2, 6, 16])
@pytest.mark.parametrize("told", [False, True])
def test_a_run_that_starts_inside_the_timetable(begin: int, told: bool) -> None:
    runs = []
    for scheduler in _both(9):
        if told:
            scheduler.set_begin_index(begin)
        runs.append(familiar_run(scheduler, begin=begin).samples)
        assert scheduler.step_index == 17
    assert relative_difference(*runs) <= 1e-5


def test_starts_at_second_evaluations_are_no_numbers_there_and_refused_here() -> None:
    ours, theirs = _both(9)
    x, results = start(1.0), []
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(3)
        t = scheduler.timesteps[3]
        try:
            results.append(scheduler.step(network(x, t), t, x).prev_sample)
        except InputError as error:
            assert "second evaluation" in str(error)
    assert len(results) == 1
    assert results[0].isnan().all()


@pytest.mark.parametrize("begin", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_noise(begin: int | None, dtype: torch.dtype) -> None:
    results = []
    for scheduler in _both(9):
        if begin is not None:
            scheduler.set_begin_index(begin)
        results.append(scheduler.add_noise(start(1.0).to(dtype), start(1.0, 1).to(dtype), scheduler.timesteps[[4, 2]]))
    assert torch.equal(*results)


def test_files_with_seeds(tmp_path: Path) -> None:
    ours, theirs = _both(noise_sampler_seed=[3, 2**40])
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    texts = [(tmp_path / name / "scheduler_config.json").read_text() for name in ("ours", "theirs")]
    assert texts[0] == texts[1]
    again = safelight.DPMSolverSDEScheduler.from_pretrained(tmp_path / "theirs")
    again.set_timesteps(5)
    ours.set_timesteps(5)
    assert torch.equal(familiar_run(again).samples, familiar_run(ours).samples)
    assert {kind.__name__ for kind in again.compatibles} == {kind.__name__ for kind in theirs.compatibles} & {
        *safelight.__all__
    }
