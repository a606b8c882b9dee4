"""Trajectories of inversion, inpainting and unCLIP, each looped over as its scripts do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import safelight
from safelight.errors import InputError

from ...helpers.compare import relative_difference
from ...helpers.sampling import SHAPE, Run, network, start
from ...helpers.trajectories import (
    BETAS,
    PREDICTIONS,
    STEPS,
    Bound,
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
            "original_image": ["one for each", "one for all"],
            "mask": ["points", "soft edge"],
        }
    }
    wider = [
        Bound(
            "x0 = (x - σ·y)/α has 1/α ≈ 100 times the rounding errors of x, while clipping keeps its own scale at 1",
            lambda name, c: c["clip_sample"] and c["dtype"] == torch.float32,
            3e-5,
        )
    ]

    @staticmethod
    def known(step: Config, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The picture and the mask that the options mean."""
        original = start(0.5, 5)[: 2 if step["original_image"] == "one for each" else 1]
        soft = torch.linspace(-0.5, 1.5, SHAPE[-1]).clamp(0, 1).expand(1, 1, *SHAPE[2:])
        mask = (start(1.0, 6) > 0).to(dtype) if step["mask"] == "points" else soft
        return original.to(dtype), mask.to(dtype)

    def run(self, scheduler: Any, step: Config, config: Config) -> Run:
        x, known = start(1.0).to(config["dtype"]), self.known(step, config["dtype"])
        samples, originals, last = [x], [], scheduler.timesteps[0] + 1
        for t in scheduler.timesteps:
            if t < last:
                out = scheduler.step(network(x, t), t, x, *known, step["generator"])
                x = out.prev_sample
                originals.append(out.pred_original_sample)
            else:
                x = scheduler.undo_step(x, last, step["generator"])
            samples.append(x)
            last = t
        return Run(torch.stack(samples[:-1]), torch.stack(samples), torch.stack(originals), scheduler.timesteps)

    def check_the_pure_run(self, scheduler: Any, ours: Run, step: Config, config: Config) -> None:
        """The same before every evaluation, though a way back is there taken at once."""
        shape = {key: config[key] for key in ("jump_length", "jump_n_sample")}
        plan, generator = scheduler.plan(config["timetable"], **shape), torch.Generator().manual_seed(1)
        x, state = start(1.0).to(config["dtype"]), scheduler.initial_state(plan, *self.known(step, config["dtype"]))
        downwards = torch.cat([torch.ones(1).bool(), ours.timesteps.diff() < 0])
        assert torch.equal(plan.timesteps, ours.timesteps[downwards])
        samples, originals = [x], []
        for i, t in enumerate(plan.timesteps):
            noise = scheduler.draw_noise(plan, i, x, generator)
            x, state, original = scheduler.advance(plan, i, network(x, t), x, state, noise)
            samples.append(x)
            originals.append(original)
        expected = torch.cat([ours.samples[:-1][downwards], ours.samples[-1:]])
        tolerance = self.tolerance("RePaintScheduler", config)
        assert relative_difference(torch.stack(samples), expected) <= tolerance
        assert relative_difference(torch.stack(originals), ours.originals) <= tolerance


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
