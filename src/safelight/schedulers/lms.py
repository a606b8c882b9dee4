"""Linear multistep in σ, from k-diffusion: Adams and Bashforth's method on an uneven grid.

Liu et al. 2022 (arXiv:2202.09778, eq. 9) have the weights of an even one.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError
from .base import Advance, Grid, Plan, SchedulerOutput
from .prediction import Mix
from .sigma import SigmaScheduler

LMSDiscreteSchedulerOutput = SchedulerOutput


def lagrange_integrals(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """∫ from `start` to `end` of each Lagrange polynomial through the distinct `nodes`.

    Exact: Gauss' quadrature with m points is so up to degree 2m − 1, and the polynomials' degree is len(nodes) − 1.
    """
    points, weights = np.polynomial.legendre.leggauss(len(nodes) // 2 + 1)
    at = start + (end - start) * (points + 1) / 2
    own = np.eye(len(nodes), dtype=bool)
    gaps = np.where(own, 1, nodes[:, None] - nodes)
    factors = np.where(own, 1, (at[:, None, None] - nodes) / gaps)  # (point, polynomial, other node)
    return (end - start) / 2 * weights @ factors.prod(axis=-1)


class _Row(NamedTuple):
    x0: Mix
    sigma: float
    weights: tuple[tuple[float, ...], ...]  # by the number of slopes before this one, the newest slope's first


class _History(NamedTuple):
    slopes: tuple[torch.Tensor, ...] = ()  # newest first


class LMSDiscreteScheduler(SigmaScheduler):
    """Steps x ← x + Σⱼ wⱼ·dⱼ over the last slopes d = (x − x₀)/σ, where Σⱼ wⱼ·dⱼ = ∫ p(s) ds from σ to σ'.

    p is the polynomial through them. Run option: `order`, how many slopes. A run that begins inside the timetable lacks
    some at first, and the reference then leaves them out of the sum without changing the weights of the others;
    `corrected` takes the weights of a polynomial through those there are.
    """

    options: ClassVar = {"order": 4}
    custom: ClassVar = ()

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):
        self._set_up()

    def _training_grid(self, corrected: bool) -> Grid:
        return self._grid(len(self), corrected)

    def _rows(self, grid: Grid, *, order: int) -> tuple[list[_Row], list[bool]]:
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise InputError(f"order is {order!r}; a whole number of at least 1 is needed")
        assert grid.sigmas is not None
        rows, sigmas = [], grid.sigmas.astype(np.float64)
        for i, sigma in enumerate(sigmas[:-1].tolist()):
            nodes = sigmas[max(i + 1 - order, 0) : i + 1][::-1]
            repeated = np.flatnonzero(nodes[1:] == nodes[:-1])  # an extra last timestep has the σ of the one before
            nodes = nodes[: repeated[0] + 1] if len(repeated) else nodes
            known = range(1, order + 1) if grid.corrected else [order]
            weights = [tuple(lagrange_integrals(nodes[:count], sigma, sigmas[i + 1]).tolist()) for count in known]
            rows.append(_Row(self._reading(sigma).x0, sigma, tuple(weights) * (order // len(weights))))
        return rows, [False] * len(rows)

    def initial_state(self, plan: Plan) -> _History:
        return _History()

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x0 = row.x0(sample, model_output)
        slope = (sample - x0).div_(row.sigma)
        slopes = (slope, *state.slopes[: len(row.weights) - 1])
        first, *others = row.weights[len(slopes) - 1]
        change = slope * first
        for weight, slope in zip(others, slopes[1:], strict=False):
            change.add_(slope, alpha=weight)
        return Advance(change.add_(sample), _History(slopes), x0)
