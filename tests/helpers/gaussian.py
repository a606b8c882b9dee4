"""Sampling where the truth is known: for Gaussian data the perfect denoiser and the exact path have formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

MEAN, SPREAD = 0.4, 0.5  # of the data


def denoised(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[x₀|x] where x = α·x₀ + σ·ε."""
    return MEAN + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * (x - alpha * MEAN)


def consistent(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """Where the probability flow takes x: what a consistency network says."""
    return MEAN + SPREAD * (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2) ** 0.5


def at_level(u: Any, alpha: float, sigma: float) -> Any:
    """Where the probability flow takes the point that is `u` standard deviations from the mean at every level."""
    return alpha * MEAN + (alpha**2 * SPREAD**2 + sigma**2) ** 0.5 * u


def sampled(
    scheduler: Any,
    plan: Any,
    x: torch.Tensor,
    evaluations: int,
    seed: int | None = None,
    network: Callable[..., torch.Tensor] = denoised,
) -> torch.Tensor:
    """`x` after the first `evaluations` of `plan` with this `network`; fresh noise comes from `seed`."""
    state, generator = scheduler.initial_state(plan), torch.Generator().manual_seed(seed or 0)
    for i, (alpha, sigma) in enumerate(plan.levels[:evaluations]):
        y = scheduler.implied_output(plan, i, x, network(x, alpha, sigma))
        noise = None if seed is None else scheduler.draw_noise(plan, i, x, generator)
        x, state, _ = scheduler.advance(plan, i, y, x, state, noise)
    return x


def flow_error(scheduler: Any, plan: Any, down_to: float = 0.0) -> float:
    """How far a run is from the exact path at its last evaluation, in standard deviations.

    The last step is left out: it ends at σ = 0, at a distance in log σ that no number of steps makes small. `down_to`
    ends the run at the first evaluation with σ/α below it.
    """
    x = at_level(torch.ones(1, 1, dtype=torch.float64), *plan.levels[0])
    below = (i for i, (alpha, sigma) in enumerate(plan.levels) if sigma < down_to * alpha)
    last = next(below, len(plan) - 1)
    alpha, sigma = plan.levels[last]
    error = sampled(scheduler, plan, x, last).item() - at_level(1.0, alpha, sigma)
    return abs(error) / (alpha**2 * SPREAD**2 + sigma**2) ** 0.5


def measured_order(
    scheduler: Any, counts: Sequence[int], down_to: float = 0.0, begin: float = 0.0, **options: Any
) -> tuple[float, list[float]]:
    """The slope of log error over log steps (least squares, sign reversed), and the errors.

    Runs start at the `begin` share of their evaluations.
    """
    plans = [scheduler.plan(count, **options) for count in counts]
    errors = [flow_error(scheduler, plan.start_at(int(begin * len(plan))), down_to) for plan in plans]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0]), errors
