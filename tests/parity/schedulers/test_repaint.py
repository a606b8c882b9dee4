"""Trajectories of inversion, inpainting and unCLIP, each looped over as its scripts do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import safelight
from safelight.errors import InputError

from ...helpers.sampling import SHAPE, Run, network, start
from ...helpers.trajectories import (
    BETAS,
    Bound,
    PREDICTIONS,
    STEPS,
    Config,
    Reason,
    TrajectoryParity,
)


class TestInverse(TrajectoryParity):
    tables = {
        "DDIMInverseScheduler": {
            **BETAS,
            "clip_sample": [True, False],
            "set_alpha_to_one": [True, False],
            "steps_offset": [0, 1],
            "prediction_type": PREDICTIONS,
            "clip_sample_range": [1.0, 0.6],
            "timestep_spacing": ["leading", "trailing"],
            "rescale_betas_zero_snr": [False, True],
            "timetable": [*STEPS, 7, 23],
        }
    }
    unseeded = ("DDIMInverseScheduler",)
    left_out = frozenset({"kwargs"})  # an old name of set_alpha_to_one
    reasons = [
        Reason(
            "at ᾱ = 1 there is no ε to read from x0",
            lambda name, c: c["prediction_type"] == "sample" and c["set_alpha_to_one"],
            "is finite",
        )
    ]


class TestUnCLIP(TrajectoryParity):
    tables = {
        "UnCLIPScheduler": {
            "num_train_timesteps": [1000, 200],
            "variance_type": ["fixed_small_log", "learned_range"],
            "clip_sample": [True, False],
            "clip_sample_range": [1.0, 0.6],
            "prediction_type": ["epsilon", "sample"],
            "beta_schedule": ["squaredcos_cap_v2"],
            "prev_timestep": [None, "the next one"],
            "timetable": [*STEPS, 7, 23],
        }
    }

    def run(self, scheduler: Any, step: Config, config: Config) -> Run:
        x = start(1.0).to(config["dtype"])
        samples, originals, times = [x], [], scheduler.timesteps
        following = [*times[1:], None] if step.pop("prev_timestep") else [None] * len(times)
        for t, prev in zip(times, following, strict=True):
            out = scheduler.step(network(x, t, config["variance_type"]), t, x, prev_timestep=prev, **step)
            x = out.prev_sample
            samples.append(x)
            originals.append(out.pred_original_sample)
        return Run(torch.stack(samples[:-1]), torch.stack(samples), torch.stack(originals), times)


class TestRePaint(TrajectoryParity):
    tables = {
        "RePaintScheduler": {
            **BETAS,
            "beta_schedule": [*BETAS["beta_schedule"], "sigmoid"],
            "eta": [0.0, 0.7],
            "clip_sample": [True, False],
            "jump_length": [10, 3],
            "jump_n_sample": [10, 2],
            "timetable": STEPS,
            "original_image": [None],
            "mask": [None],
        }
    }
    wider = [
        Bound(
            "x0 = (x - σ·y)/α magnifies what hundreds of steps have rounded off, and is clipped to [-1, 1]",
            lambda name, c: c["clip_sample"],
            5e-5,
        )
    ]
    pure = False  # a plan goes back with one draw of noise instead of many

    def run(self, scheduler: Any, step: Config, config: Config) -> Run:
        x = start(1.0).to(config["dtype"])
        original = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)).to(x)
        mask = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(6)) > 0.5).to(x)
        samples, originals, last = [x], [], scheduler.timesteps[0] + 1
        for t in scheduler.timesteps:
            if t < last:
                out = scheduler.step(network(x, t), t, x, original, mask, step["generator"])
                x = out.prev_sample
                originals.append(out.pred_original_sample)
            else:
                x = scheduler.undo_step(x, last, step["generator"])
            samples.append(x)
            last = t
        return Run(torch.stack(samples[:-1]), torch.stack(samples), torch.stack(originals), scheduler.timesteps)


def test_steps_go_where_they_are_sent() -> None:
    scheduler = safelight.UnCLIPScheduler()
    scheduler.set_timesteps(10)
    x = start(1.0)
    with pytest.raises(InputError, match="does not follow"):
        scheduler.step(x, scheduler.timesteps[2], x, prev_timestep=scheduler.timesteps[5])


def test_a_plan_keeps_what_is_known() -> None:
    scheduler = safelight.RePaintScheduler(eta=1.0)
    plan, generator = scheduler.plan(20, jump_length=4, jump_n_sample=3), torch.Generator().manual_seed(0)
    original, mask, x = start(0.3, 5).clamp(-1, 1), (start(1.0, 6) > 0).float(), start(1.0)
    state = scheduler.initial_state(plan, original, mask)
    assert len(plan) == 20 + 4 * 4 * 2
    for i in range(len(plan)):
        y = network(x, plan.times[i])
        x, state, _ = scheduler.advance(plan, i, y, x, state, scheduler.draw_noise(plan, i, x, generator))
    assert torch.allclose(x[mask == 1], original[mask == 1], atol=1e-5)
    assert not torch.allclose(x, original, atol=0.1)
    with pytest.raises(InputError, match="belong together"):
        scheduler.initial_state(plan, original)
