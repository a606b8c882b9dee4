"""One evaluation a step in σ: Euler's method (Karras et al. 2022, arXiv:2206.00364), ancestral, linear multistep."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError
from .base import Advance, Grid, SchedulerOutput
from .plan import Sum
from .prediction import Mix
from .sigma import SigmaScheduler, SlopeRow, ancestral
from .timetable import TimetableScheduler

EulerDiscreteSchedulerOutput = LMSDiscreteSchedulerOutput = EulerAncestralDiscreteSchedulerOutput = SchedulerOutput


class ChurnedEuler(TimetableScheduler):
    """Base of Euler's method with churn. `_advance` takes x₀ for known where the state is one."""

    options: ClassVar = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0}
    _read_unchurned: ClassVar[tuple[str, ...]] = ()  # prediction types read as at σ, when churn has taken x to σ̂
    _predicts_slope = False

    def _rows(
        self, grid: Grid, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> tuple[list[SlopeRow], list[bool]]:
        if s_churn < 0:
            raise InputError(f"s_churn is {s_churn}; it must not be negative")
        sigmas = torch.from_numpy(grid.sigmas)
        sigma, following = sigmas[: len(grid.times)], sigmas[1 : len(grid.times) + 1]
        most = min(s_churn / (len(sigmas) - 1), 2**0.5 - 1)
        churned = (s_tmin <= sigma) & (sigma <= s_tmax) & (most > 0)
        raised = torch.where(churned, sigma * (most + 1), sigma)
        unchurned = self.config["prediction_type"] in self._read_unchurned and not grid.corrected
        columns = (sigma if unchurned else raised, raised, following - raised, (raised**2 - sigma**2) ** 0.5)
        parts = torch.stack(columns, 1).tolist()
        rows = [SlopeRow(self._reading(at).x0, to, change, up, s_noise) for at, to, change, up in parts]
        return rows, churned.tolist()

    def _advance(
        self, row: SlopeRow, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x = sample.float()
        if noise is not None and row.up:
            x = x + noise * row.s_noise * row.up
        x0 = row.x0(x, model_output) if state is None else state
        if self._predicts_slope:
            previous = torch.add(x, model_output, alpha=row.change)
        else:
            previous = (x - x0).div_(row.sigma).mul_(row.change).add_(x)
        return Advance(previous.to(model_output.dtype), None, x0)


class EulerDiscreteScheduler(ChurnedEuler, SigmaScheduler):
    """Steps x ← x + (σ' − σ)·(x − x₀)/σ, after raising σ to σ̂ = (1 + γ)·σ by fresh noise where churn is on.

    Run options, as in the paper: `s_churn` spreads over the steps whose σ is within [`s_tmin`, `s_tmax`], with noise of
    standard deviation `s_noise`. With churn the reference reads v-predictions at σ although x is at σ̂; `corrected`
    reads them at σ̂.
    """

    _read_unchurned = ("v_prediction",)

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, prediction_type: str = "epsilon",
        interpolation_type: str = "linear", use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None, sigma_max: float | None = None, timestep_spacing: str = "linspace",
        timestep_type: str = "discrete", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ):  # fmt: skip
        self._set_up()


class EulerAncestralDiscreteScheduler(SigmaScheduler):
    """Steps x ← x + (σ_down − σ)·(x − x₀)/σ + σ_up·z with σ_down = σ'²/σ and σ_up² = σ'² − σ_down².

    From k-diffusion: DDIM with η = 1 (Song et al. 2021, arXiv:2010.02502, eq. 16) in σ, but that the noise-free part is
    an Euler step. Noise is drawn at every step, also at the last, where it has no weight.
    """

    custom: ClassVar = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self._set_up()

    def _rows(self, grid: Grid) -> tuple[list[SlopeRow], list[bool]]:
        sigmas = torch.from_numpy(grid.sigmas)
        down, up = ancestral(sigmas[:-1], sigmas[1:])
        columns = torch.stack([sigmas[:-1], down - sigmas[:-1], up], 1).tolist()
        return [SlopeRow(self._reading(row[0]).x0, *row) for row in columns], [True] * len(columns)


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
    steps: tuple[Sum, ...]  # by the number of slopes before this one


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
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        prediction_type: str = "epsilon", timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self._set_up()

    def _training_grid(self, corrected: bool) -> Grid:
        return self._grid(len(self), corrected)

    def _rows(self, grid: Grid, *, order: int) -> tuple[list[_Row], list[bool]]:
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise InputError(f"order is {order!r}; a whole number of at least 1 is needed")
        rows, sigmas = [], grid.sigmas.astype(np.float64)
        for i, sigma in enumerate(sigmas[:-1].tolist()):
            nodes = sigmas[max(i + 1 - order, 0) : i + 1][::-1]
            repeated = np.flatnonzero(nodes[1:] == nodes[:-1])  # an extra last timestep has the σ of the one before
            nodes = nodes[: repeated[0] + 1] if len(repeated) else nodes
            known = range(1, order + 1) if grid.corrected else [order]
            weights = [lagrange_integrals(nodes[:count], sigma, sigmas[i + 1]).tolist() for count in known]
            steps = tuple(Sum(1.0, tuple(one)) for one in weights)
            rows.append(_Row(self._reading(sigma).x0, sigma, steps * (order // len(steps))))
        return rows, [False] * len(rows)

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x0, slope = self._read(row, model_output, sample)
        slopes = (slope, *(state or ()))[: len(row.steps)]
        return Advance(row.steps[len(slopes) - 1](sample, slopes).to(model_output.dtype), slopes, x0)
