"""Trajectories of PNDM on a continuous schedule."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import safelight

from ...helpers.compare import relative_difference
from ...helpers.sampling import familiar_run
from ...helpers.trajectories import GIVEN, STEPS, TrajectoryParity

NAME = "IPNDMScheduler"
FALLING = [0.999, 0.9, 0.7, 0.45, 0.2, 0.1, 0.0]
MANY = np.linspace(1.0, 0.001, 42).tolist()


class TestIPNDM(TrajectoryParity):
    tables = {
        NAME: {
            "num_train_timesteps": [1000, 200],
            "trained_betas": [None, FALLING, MANY],
            "timetable": [*STEPS, 7, 3, 2, 1],
        },
    }
    unseeded = (NAME,)
    # A thousand rising levels: in float32, rounding alone takes such a run 2e-5 away.
    further = [(NAME, {"trained_betas": GIVEN, "dtype": torch.float64}, None)]


def _both(**config: object) -> tuple[safelight.IPNDMScheduler, diffusers.IPNDMScheduler]:
    return safelight.IPNDMScheduler(**config), diffusers.IPNDMScheduler(**config)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [None, 8])
@pytest.mark.parametrize("trained", [None, FALLING])
def test_attributes(steps: int | None, trained: list[float] | None) -> None:
    ours, theirs = _both(num_train_timesteps=300, trained_betas=trained)
    for scheduler in (ours, theirs) if steps else ():
        scheduler.set_timesteps(steps)
    for table in ("timesteps", "betas", "alphas"):
        assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
    assert (ours.order, len(ours), ours.init_noise_sigma) == (theirs.order, len(theirs), theirs.init_noise_sigma)
    assert (ours.compatibles, theirs.compatibles) == ([safelight.IPNDMScheduler], [diffusers.IPNDMScheduler])


@pytest.mark.parametrize("begin", [1, 4, 9])
@pytest.mark.parametrize("told", [False, True])
def test_a_run_that_starts_inside_the_timetable(begin: int, told: bool) -> None:
    runs = []
    for scheduler in _both():
        scheduler.set_timesteps(10)
        if told:
            scheduler.set_begin_index(begin)
        runs.append(familiar_run(scheduler, begin=begin).samples)
        assert scheduler.step_index == 10
    assert relative_difference(*runs) <= 1e-5


def test_files(tmp_path: Path) -> None:
    ours, theirs = _both(trained_betas=FALLING)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    texts = [(tmp_path / name / "scheduler_config.json").read_text() for name in ("ours", "theirs")]
    assert texts[0] == texts[1]
    again = safelight.IPNDMScheduler.from_pretrained(tmp_path / "theirs")
    assert (again.config.trained_betas, again.config.num_train_timesteps) == (FALLING, 1000)
