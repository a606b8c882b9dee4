"""The coefficients of DPM-Solver and DPM-Solver++ (Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError
from .log_snr import LogSNRScheduler

Track = tuple[np.ndarray, np.ndarray, np.ndarray]  # α, σ and λ of each evaluation and of the end

SOLVER_TYPES = ("midpoint", "heun")
# What these names of other solvers mean here.
FOREIGN: Mapping[str, Mapping[str, str]] = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
}


class Exponential:
    """The exact part of steps from λ_s to λ_t: x ← keep·x + Σ weights·(m, m', m'') + spread·z, with m(λ) at s.

    Arrays over the steps; the derivatives are in units of the step h. With z = −h for x₀ ("++"), −2h in its SDE and h
    for ε, and A = α_t or σ_t, the weights are −A·(e^z − 1), A·(1 − (e^z − 1)/z) and A·(1/2 − (e^z − 1 − z)/z²)
    (arXiv:2211.01095, eq. 3.4 and app. A).
    """

    def __init__(self, kind: str, track: Track, starts: np.ndarray, corrected: bool = False):
        alpha, sigma, lam = track
        ends = np.arange(1, len(alpha))
        self.h = h = lam[ends] - lam[starts]
        z = {"dpmsolver++": -h, "sde-dpmsolver++": -2 * h}.get(kind, h)
        data = kind.endswith("++")
        scale = alpha[ends] if data else sigma[ends] * (2 if kind == "sde-dpmsolver" else 1)
        growth = np.expm1(z)
        ratio = np.divide(growth, z, out=np.ones_like(z), where=z != 0)
        second = np.divide(growth - z, z**2, out=np.full_like(z, 0.5), where=np.isfinite(z) & (z != 0))
        half = -0.5 if kind == "sde-dpmsolver++" and not corrected else 0.5  # a slip of the reference
        self.weights = (-scale * growth, scale * (1 - ratio), scale * (half - second))
        self.keep = sigma[ends] / sigma[starts] if data else alpha[ends] / alpha[starts]
        self.spread = np.zeros_like(h)
        if kind == "sde-dpmsolver++":
            self.keep = self.keep * np.exp(-h)
            self.spread = sigma[ends] * (-growth) ** 0.5
        elif kind == "sde-dpmsolver":
            self.spread = sigma[ends] * np.expm1(2 * h) ** 0.5


def multistep_weights(part: Exponential, lam: np.ndarray, solver_type: str, corrected: bool) -> list[np.ndarray]:
    """The weights of the last 1, 2 and 3 outputs in a multistep method of that order: arrays (steps, order)."""
    on_m, on_slope, on_curve = part.weights
    h = np.where(part.h == 0, 1, part.h)  # a step of no length has no weights
    gaps = np.diff(lam[:-1], prepend=lam[0] - 1)  # between evaluations; the first has none before it
    r0, r1 = gaps / h, np.append(1, gaps[:-1]) / h
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (on_m / 2 if solver_type == "midpoint" else on_slope) / r0
        curve = on_curve / (r0 + r1) * (2 if corrected else 1)
        share = r0 / (r0 + r1)
        newer = (on_slope * (1 + share) + curve) / r0  # of m − m'
        older = -(on_slope * share + curve) / r1  # of m' − m''
        return [
            on_m[:, None],
            np.stack([on_m + slope, -slope], axis=1),
            np.stack([on_m + newer, older - newer, -older], axis=1),
        ]


class DPMScheduler(LogSNRScheduler):
    """What the DPM solvers' configs have in common."""

    choices: ClassVar = {
        **LogSNRScheduler.choices,
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        "solver_type": SOLVER_TYPES,
    }
    foreign: ClassVar = FOREIGN
    _repeats_last, _x0_from_noise = False, True
    _without_third_order: ClassVar[tuple[str, ...]] = ("sde-dpmsolver",)

    @property
    def _algorithm(self) -> str:
        return self.config["algorithm_type"]

    def _check_settings(self) -> None:
        super()._check_settings()
        settings: Mapping[str, Any] = self._settings
        kind = self._algorithm
        self._reads_noise = not kind.endswith("++")
        if self._reads_noise and settings.get("final_sigmas_type") == "zero":
            raise ConfigError(f"algorithm_type={kind!r} cannot end at σ = 0; set final_sigmas_type='sigma_min'")
        if kind in self._without_third_order and settings["solver_order"] == 3:
            raise ConfigError(f"algorithm_type={kind!r} has no third order; set solver_order to 1 or 2")
