"""The values of the pure surface: a timetable, the finished `Plan`, and what one step gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from .prediction import Mix


class Grid(NamedTuple):
    """The timetable of a run, before a solver has made its coefficients.

    `times` are what the network is told, one per evaluation (int64 or float32); `steps` is the `num_inference_steps`
    asked for; `sigmas` (with the final σ after the last evaluation's) is there for solvers that work in σ.
    `exact`: each step ends at the next entry of `times`, as with a timetable given by the caller. `corrected` is
    `plan`'s argument.
    """

    times: np.ndarray
    steps: int
    sigmas: Any = None  # an array, where there is one
    exact: bool = False
    corrected: bool = False


class Sum(NamedTuple):
    """on_x·x + Σ weights[k]·outputs[k] + on_noise·noise; outputs are latest first."""

    on_x: float
    weights: tuple[float, ...]
    on_noise: float = 0.0

    def __call__(
        self, x: torch.Tensor, outputs: Sequence[torch.Tensor], noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        total = (x if x.itemsize > 2 else x.float()) * self.on_x
        for weight, output in zip(self.weights, outputs, strict=False):
            total.add_(output, alpha=weight)
        if noise is not None and self.on_noise:
            total.add_(noise, alpha=self.on_noise)
        return total


class Row(NamedTuple):
    """How one evaluation is read, and the step from it, at each order that is possible there (1, 2, …)."""

    x0: Mix
    eps: Mix | None  # where the solver combines ε: of x and the output, or of x and x₀ where that is limited
    steps: tuple[Sum, ...]


class Advance(NamedTuple):
    """What one pure step gives back: x at the next noise level, the solver's state, and its estimate of x₀."""

    sample: torch.Tensor
    state: Any = None
    pred_original_sample: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """The frozen timetable of one sampling run, with every coefficient as a Python float.

    Evaluation i of `len(plan)` tells the network `timesteps[i]` (`times[i]` as a number; in [0, num_train_timesteps)
    unless the scheduler has continuous timesteps). There x = α·x₀ + σ·ε with (α, σ) = `levels[i]` in the solver's own
    space. `needs_noise[i]` says whether `advance` needs `noise`; `rows[i]` are the solver's coefficients. `begin`
    counts the evaluations that `start_at` left out.
    """

    timesteps: torch.Tensor
    times: tuple[float, ...]
    levels: tuple[tuple[float, float], ...]
    rows: tuple[Any, ...]
    needs_noise: tuple[bool, ...]
    order: int
    init_noise_sigma: float
    options: Mapping[str, Any]
    grid: Grid
    begin: int = 0

    @property
    def num_inference_steps(self) -> int:
        """The number of steps asked for; `len(plan)` is larger where a step takes several evaluations."""
        return self.grid.steps

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """The σ of each evaluation and the final one, for solvers that work in σ."""
        return None if self.grid.sigmas is None else tuple(self.grid.sigmas[self.begin :].tolist())

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, i: int) -> Any:
        """The coefficients of evaluation `i`; raises `InputError` outside [0, len(plan))."""
        if not 0 <= i < len(self.rows):
            raise InputError(f"step {i} is outside this plan, whose steps are 0 to {len(self.rows) - 1}")
        return self.rows[i]

    def start_at(self, i: int) -> Plan:
        """The plan that begins with this one's evaluation `i`, for runs that start from a partly noisy sample."""
        self.row(i)
        per_evaluation = ("timesteps", "times", "levels", "rows", "needs_noise")
        return replace(self, **{name: getattr(self, name)[i:] for name in per_evaluation}, begin=self.begin + i)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self
