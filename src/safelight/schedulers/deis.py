"""DEIS: exponential integration of a polynomial through the last outputs (Zhang & Chen 2022, arXiv:2204.13902)."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import numpy as np

from ..configuration import register_to_config
from ..errors import InputError
from .base import Grid
from .log_snr import LogSNRScheduler
from .plan import Row, Sum
from .prediction import Mix, Reading


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Points in [0, 1] and weights that integrate e^(100·s) times a polynomial to float64's precision."""
    points, weights = np.polynomial.legendre.leggauss(64)
    return (points + 1) / 2, weights / 2


def polynomial_weights(
    lam: np.ndarray, order: int, rate: np.ndarray | float, ahead: int = 0, blunt: bool = False
) -> np.ndarray:
    """∫ e^(rate·(λ − λ'))·ℓₖ(λ) dλ over each step from λ to λ', an array (steps, order).

    ℓₖ is 1 at the k-th latest of `order` nodes and 0 at the others; the latest node of a step is its start, or with
    `ahead=1` its end. `blunt` counts the slope of the line of order 2 as if the rate were 0. Steps that have fewer
    nodes behind them are meaningless. Raises `InputError` where a step needs nodes that coincide.
    """
    start, end, h = lam[:-1], lam[1:], np.diff(lam)
    stuck = np.flatnonzero((h[:-1] == 0) & (h[1:] != 0))
    if order > 1 and len(stuck):
        raise InputError(
            f"evaluations {stuck[0]} and {stuck[0] + 1} have the same noise level, from which order {order} cannot "
            "extrapolate; use fewer steps, or order 1"
        )
    points, weights = _quadrature()
    span = np.minimum(h, 100 / np.abs(rate))  # before that, e^(rate·(λ − λ')) is nothing
    at = end[:, None] - np.outer(span, points)
    weights = weights * span[:, None] * np.exp(-np.outer(rate * span, points))
    before = lam[0] - np.arange(order - 1, 0, -1)
    nodes = np.lib.stride_tricks.sliding_window_view(np.append(before, lam), order)[ahead : ahead + len(h), ::-1]
    gaps = nodes[:, :, None] - nodes[:, None, :]
    gaps[gaps == 0] = 1  # only steps of no length, which have no weights, follow nodes that coincide
    integrals = []
    for k in range(order):
        basis = (at[:, :, None] - np.delete(nodes, k, axis=1)[:, None]) / np.delete(gaps[:, k], k, axis=1)[:, None]
        integrals.append((weights * basis.prod(axis=2)).sum(axis=1))
    result = np.stack(integrals, axis=1)
    if blunt and order == 2:
        excess = (h**2 / 2 - (weights * (at - start[:, None])).sum(axis=1)) / gaps[:, 0, 1]
        result += np.stack([excess, -excess], axis=1)
    return result


class DEISMultistepScheduler(LogSNRScheduler):
    """Steps x ← (α'/α)·x + α'·∫ P(log ρ) dρ from ρ to ρ', ρ = σ/α, P a polynomial through the last ε.

    P has degree `solver_order` − 1 in log ρ (AB-DEIS in that variable). `lower_order_final` lowers it at the end of
    runs of fewer than 15 steps. The reference reads ε from a flow prediction, without flow sigmas, with a factor of α
    as well; `corrected` does not.
    """

    custom = ()
    choices: ClassVar = {
        **LogSNRScheduler.choices,
        "algorithm_type": ("deis",),
        "solver_type": ("logrho",),
    }
    foreign: ClassVar = {
        "algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
        "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
    }
    _reads_noise = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "deis", solver_type: str = "logrho",
        lower_order_final: bool = True, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0, timestep_spacing: str = "linspace",
        steps_offset: int = 0, use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
    ):  # fmt: skip
        self._set_up()

    def _readings(self, grid: Grid) -> list[Reading]:
        assert grid.sigmas is not None
        readings = []
        for one, (alpha, sigma), given in zip(
            super()._readings(grid), self._levels(grid), grid.sigmas.tolist(), strict=False
        ):
            # ε is what x₀ leaves of x, by the same quirks
            over = given if self.config["prediction_type"] == "flow_prediction" and not grid.corrected else sigma
            on_x, on_y, divisor = Mix(0.0, 1.0) if self._settings["thresholding"] else one.x0
            eps = Mix(divisor - alpha * on_x, -alpha * on_y, divisor * over)
            readings.append(Reading(one.x0, eps))
        return readings

    def _rows(self, grid: Grid) -> tuple[list[Row], list[bool]]:
        alpha, sigma, lam = self._track(grid)
        count, keep = len(grid.times), (alpha[1:] / alpha[:-1]).tolist()
        orders = range(1, self._settings["solver_order"] + 1)
        # ρ = e^−λ, so that dρ = −e^−λ dλ
        weights = [(-sigma[1:, None] * polynomial_weights(lam, order, -1.0)).tolist() for order in orders]
        rows = []
        for i, one in enumerate(self._readings(grid)):
            rows.append(Row(*one, tuple(Sum(keep[i], of[i]) for of in weights[: self._order_at(i, count)])))
        return rows, [False] * count
