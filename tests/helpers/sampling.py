"""Whole sampling runs with a function for a network, on either surface, recorded step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

SHAPE = (2, 3, 6, 5)


class Run(NamedTuple):
    """What a run told the network, and what came of it: one entry per evaluation."""

    inputs: torch.Tensor
    samples: torch.Tensor  # x before each evaluation, and the result
    originals: torch.Tensor | None
    timesteps: torch.Tensor


def network(x: torch.Tensor, t: Any, learned: str = "") -> torch.Tensor:
    """A smooth function of x and t of order one, with a second half of channels for a `learned` variance."""
    time = torch.as_tensor(t, dtype=torch.float32) / 300
    y = 0.6 * torch.tanh(0.8 * x.roll(1, -1) + torch.sin(time)) + 0.3 * x
    if not learned.startswith("learned"):
        return y
    share = torch.sin(3 * x + time)  # in [−1, 1]
    return torch.cat([y, share if learned == "learned_range" else (share + 1.1) / 50], dim=1)


def start(init_noise_sigma: Any, seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * init_noise_sigma


def familiar_run(
    scheduler: Any,
    step_options: Mapping[str, Any] | None = None,
    begin: int = 0,
    learned: str = "",
    dtype: torch.dtype = torch.float32,
    end: int | None = None,
) -> Run:
    """Loop over `scheduler.timesteps` from `begin` (to `end`), as scripts do."""
    inputs, samples, originals = [], [], []
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)  # diffusers' flow solvers have none
    x = start(float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)
    samples.append(x)
    for t in scheduler.timesteps[begin:end]:
        inputs.append(scale(x, t))
        out = scheduler.step(network(inputs[-1], t, learned), t, x, **(step_options or {}))
        x = out.prev_sample
        samples.append(x)
        if "pred_original_sample" in out and out.pred_original_sample is not None:
            originals.append(out.pred_original_sample)
    return _run(inputs, samples, originals, scheduler.timesteps[begin:end])


def pure_run(
    scheduler: Any,
    plan: Any,
    generator: Any = None,
    noise: Any = None,
    learned: str = "",
    dtype: torch.dtype = torch.float32,
) -> Run:
    """Loop over the evaluations of `plan`; `noise` is that of every step, unless it comes from `generator`."""
    inputs, samples, originals = [], [], []
    x, state = start(plan.init_noise_sigma).to(dtype), scheduler.initial_state(plan)
    samples.append(x)
    for i in range(len(plan)):
        inputs.append(scheduler.scale_input(plan, i, x))
        output = network(inputs[-1], plan.timesteps[i], learned)
        z = scheduler.draw_noise(plan, i, x, generator, output.dtype) if noise is None else noise
        x, state, original = scheduler.advance(plan, i, output, x, state, z)
        samples.append(x)
        if original is not None:
            originals.append(original)
    return _run(inputs, samples, originals, plan.timesteps)


def _run(inputs: list, samples: list, originals: list, timesteps: torch.Tensor) -> Run:
    return Run(_joined(inputs), _joined(samples), _joined(originals) if originals else None, timesteps)


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The tensors as one: stacked, or end to end where they are of several sizes."""
    same = len({one.shape for one in tensors}) == 1
    return torch.stack(tensors) if same else torch.cat([one.reshape(-1) for one in tensors])


def noised_on_a_timetable(scheduler: Any, begin: bool, stepped: bool) -> torch.Tensor:
    """`add_noise` at the fifth and third timestep, after `set_begin_index(3)` or not, before or after one step."""
    if begin:
        scheduler.set_begin_index(3)
    x, t = start(1.0, 3), scheduler.timesteps[3]
    if stepped:
        scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x)
    noised = scheduler.add_noise(start(1.0, 4), start(1.0, 5), scheduler.timesteps[[4, 2]])
    assert (scheduler.begin_index, scheduler.step_index) == (3 if begin else None, 4 if stepped else None)
    return noised
