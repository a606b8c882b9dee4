"""SA-Solver: a stochastic Adams predictor and corrector (Xue et al. 2023, arXiv:2309.05019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import ConfigError
from ..randomness import randn_tensor
from .base import Grid, Plan, Scheduler
from .deis import polynomial_weights
from .log_snr import CorrectedRow, CorrectingScheduler
from .plan import Sum


def _middle(t: Any) -> float:
    return 1.0 if 200 <= t <= 800 else 0.0


class SASolverScheduler(CorrectingScheduler):
    """Steps x ← (σ'/σ)·e^(−τ²h)·x + α'·(1 + τ²)·∫ e^((1 + τ²)(λ − λ'))·P(λ) dλ + σ'·√(1 − e^(−2τ²h))·z, h = λ' − λ.

    P is a polynomial through the last `predictor_order` x₀ (SA-Predictor). Before each step the one before is taken
    again, with the same z, through `corrector_order` x₀ with the new one among them (SA-Corrector; 0: not at all).
    `algorithm_type` "noise_prediction" combines ε instead. `lower_order_final` lowers both orders at the end.

    `tau_func` says how random the run is at a timestep: 0 is the probability-flow ODE, 1 the reverse SDE; None means 1
    in timesteps 200 to 800 and 0 elsewhere. It is called with a tensor of one timestep while a run is planned. A config
    with a function in it can be converted, but not saved. With two x₀, the slope of P counts h²/2, for few steps.
    """

    custom = ()
    timetable_options: ClassVar = {}
    choices: ClassVar = {
        **CorrectingScheduler.choices,
        "algorithm_type": ("data_prediction", "noise_prediction"),
        "predictor_order": range(1, 7),
        "corrector_order": range(7),
    }

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, predictor_order: int = 2, corrector_order: int = 2,
        prediction_type: str = "epsilon", tau_func: Callable[[Any], float] | None = None, thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        algorithm_type: str = "data_prediction", lower_order_final: bool = True, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0, lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None, timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self._set_up()

    def _check_settings(self) -> None:
        super()._check_settings()
        settings = self._settings
        self._reads_noise = settings["algorithm_type"] == "noise_prediction"
        self._memory = max(settings["predictor_order"], settings["corrector_order"] - 1)
        if settings["tau_func"] is not None and not callable(settings["tau_func"]):
            raise ConfigError(
                f"tau_func is {settings['tau_func']!r}, not a function of the timestep; give one, or None"
            )

    def _taus(self, grid: Grid) -> np.ndarray:
        """How random each step is."""
        function = self.config["tau_func"] or _middle
        taus = [float(function(t)) for t in torch.from_numpy(grid.times.copy())]
        for time, tau in zip(grid.times.tolist(), taus, strict=True):
            if not 0 <= tau < math.inf:
                raise ConfigError(f"tau_func gives {tau} at timestep {time}; a finite number of at least 0 is needed")
        return np.array(taus)

    def _rows(self, grid: Grid) -> tuple[list[CorrectedRow], list[bool]]:
        settings, count, taus = self._settings, len(grid.times), self._taus(grid)
        predictor, corrector = settings["predictor_order"], settings["corrector_order"]
        sums = self._sums(grid, taus, predictor, 0), self._sums(grid, taus, corrector, 1)
        rows = []
        for i, one in enumerate(self._readings(grid)):
            left = count - i if settings["lower_order_final"] else count
            predict = [of[i] for of in sums[0][: min(left, i + 1)]]
            correct = [of[i - 1] for of in sums[1][: min(left + 2, i + 1)]] if i else []
            rows.append(CorrectedRow(*one, tuple(predict), tuple(correct)))
        return rows, (taus > 0).tolist()

    def _sums(self, grid: Grid, taus: np.ndarray, most: int, ahead: int) -> list[list[Sum]]:
        """The steps by each order from 1 to `most`, the latest output that of their start, or `ahead` of it."""
        alpha, sigma, lam = self._track(grid)
        if ahead:  # no evaluation follows the last step
            alpha, sigma, lam, taus = alpha[:-1], sigma[:-1], lam[:-1], taus[:-1]
        h, more = np.diff(lam), 1 + taus**2
        if self._reads_noise:
            keep, scale, rate = alpha[1:] / alpha[:-1], -sigma[1:] * more, -np.ones_like(h)
            spread = taus * sigma[1:] * np.expm1(2 * h) ** 0.5
        else:
            keep, scale, rate = np.exp(-(taus**2) * h) * sigma[1:] / sigma[:-1], alpha[1:] * more, more
            spread = sigma[1:] * (-np.expm1(-2 * taus**2 * h)) ** 0.5
        orders = []
        for order in range(1, most + 1):
            weights = scale[:, None] * polynomial_weights(lam, order, rate, ahead, blunt=not self._reads_noise)
            steps = zip(keep.tolist(), weights.tolist(), spread.tolist(), strict=True)
            orders.append([Sum(*step) for step in steps])
        return orders

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """As of every solver, but drawn at each step, as in the reference, though it counts only where τ is not 0."""
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype or sample.dtype)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, corrected: bool = False
    ) -> torch.Tensor:
        """The noisy sample √ᾱ·x₀ + √(1 − ᾱ)·ε at `timesteps` (B,) in [0, num_train_timesteps), before and in a run.

        So it is with flow sigmas as well, in the reference; `corrected` then takes the levels of the run's timetable.
        """
        if corrected and self._flow:
            return super().add_noise(original_samples, noise, timesteps, corrected)
        return Scheduler.add_noise(self, original_samples, noise, timesteps, corrected)
