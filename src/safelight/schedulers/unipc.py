"""UniPC: a predictor and a corrector of any order that share their evaluations (Zhao et al. 2023, arXiv:2302.04867)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..configuration import register_to_config
from ..errors import ConfigError, InputError
from .base import Grid, Scheduler
from .log_snr import CorrectedRow, CorrectingScheduler
from .plan import Sum
from .spacing import TIME_SHIFTS, chosen_grid, karras, shifted, stretched_to, time_shifted


class UniPCMultistepScheduler(CorrectingScheduler):
    """Steps x ← (σ'/σ)·x − α'·(e^−h − 1)·m − α'·B(h)·Σ ρₖ·(mₖ − m)/rₖ over the last outputs m, mₖ (eq. 3 and 8).

    Before each step the one before is taken again with the new output among the mₖ (the corrector), but after those in
    `disable_corrector`. `solver_type`: B(h) = e^h − 1 ("bh2") or h ("bh1"), h signed as in the paper; with
    `predict_x0=False`, m is ε. `solver_p`, a scheduler with the same timetable, replaces the predictor. Flow sigmas are
    given by `sigmas`, shifted by run option `mu` (`use_dynamic_shifting`), and stretched to end at `shift_terminal`.
    """

    custom = ("sigmas",)
    choices: ClassVar = {
        **CorrectingScheduler.choices,
        "time_shift_type": TIME_SHIFTS,
        "solver_type": ("bh1", "bh2"),
        "solver_order": range(1, 7),
    }
    foreign: ClassVar = {"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")}
    _flow_grids = (karras,)

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Any = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, predict_x0: bool = True, solver_type: str = "bh2",
        lower_order_final: bool = True, disable_corrector: Sequence[int] = [], solver_p: Any = None,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0,
        timestep_spacing: str = "linspace", steps_offset: int = 0, final_sigmas_type: str | None = "zero",
        rescale_betas_zero_snr: bool = False, use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
        sigma_min: float | None = None, sigma_max: float | None = None, shift_terminal: float | None = None,
    ):  # fmt: skip
        self._set_up()

    def _check_settings(self) -> None:
        super()._check_settings()
        settings = self._settings
        self._reads_noise = not settings["predict_x0"]
        if self._reads_noise and settings["thresholding"]:
            raise ConfigError("thresholding is of x₀; it needs predict_x0=True")
        if not isinstance(settings["solver_p"], Scheduler | None):
            raise ConfigError(f"solver_p is {settings['solver_p']!r}; a scheduler, or None, is needed")
        if settings["shift_terminal"] is not None and not self._flow:
            raise ConfigError("shift_terminal is for flow sigmas; set use_flow_sigmas=True with it")

    def _custom_grid(self, corrected: bool, sigmas: np.ndarray, mu: float | None = None) -> Grid:
        if not self._flow or chosen_grid(self._settings):
            raise InputError("custom sigmas need a config with use_flow_sigmas=True and no other grid")
        if not 0 < sigmas[-1] <= sigmas[0] <= 1:
            raise InputError(f"sigmas are {sigmas.tolist()}; numbers in (0, 1] are needed")
        return self._sigmas_at(np.empty(0), len(sigmas), corrected, mu, sigmas)

    def _sigmas_at(
        self, times: np.ndarray, steps: int, corrected: bool, mu: float | None, given: np.ndarray | None = None
    ) -> Grid:
        if self._settings["use_dynamic_shifting"] and mu is None:
            raise InputError("the config has use_dynamic_shifting=True, which needs mu")
        grid = super()._sigmas_at(times, steps, corrected, mu, given)
        if grid.sigmas is not None and self._flow and chosen_grid(self._settings):  # σ/α as the σ of a flow
            sigmas = grid.sigmas.astype(np.float64) / (grid.sigmas + 1)
            times = (sigmas[:-1] * len(self)).astype(np.int64)
            return grid._replace(times=times, sigmas=sigmas.astype(np.float32))
        return grid

    def _flow_sigmas(self, steps: int) -> np.ndarray:
        return np.linspace(1, 1 / len(self), steps + 1)[:-1]

    def _shifted(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        settings = self._settings
        if mu is not None:
            sigmas = time_shifted(sigmas, mu, settings["time_shift_type"])
        else:
            sigmas = shifted(sigmas, settings["flow_shift"])
        if settings["shift_terminal"]:
            sigmas = stretched_to(sigmas, settings["shift_terminal"])
        return np.minimum(sigmas, 1 - 1e-6)  # at 1 there is no signal, and λ is infinite

    def _rows(self, grid: Grid) -> tuple[list[CorrectedRow], list[bool]]:
        settings, count = self._settings, len(grid.times)
        predict, correct = self._sums(grid)
        predictor = settings["solver_p"]
        plan = predictor and predictor.plan(count)
        if plan and plan.times != tuple(grid.times.tolist()):
            raise InputError(f"solver_p has the timetable {plan.times}, but this run's is {tuple(grid.times.tolist())}")
        left = range(count, 0, -1) if settings["lower_order_final"] else [settings["solver_order"]] * count
        rows = []
        for i, one in enumerate(self._readings(grid)):
            again = correct[i - 1][: left[i - 1]] if i > 0 and i - 1 not in settings["disable_corrector"] else ()
            # By order, each with one output more than its order; there is none for the newest alone.
            again = (*again[:1], *again)
            rows.append(CorrectedRow(*one, predict[i][: left[i]], again, plan and (predictor, plan, i)))
        return rows, [False] * count

    def _sums(self, grid: Grid) -> tuple[list[tuple[Sum, ...]], list[tuple[Sum, ...]]]:
        """The predictor and the corrector of each step, by order."""
        alpha, sigma, lam = self._track(grid)
        scale, other = (sigma, alpha) if self._reads_noise else (alpha, sigma)
        steps: tuple[list, list] = ([], [])
        for i, h in enumerate(np.diff(lam).tolist()):
            hh, keep = h if self._reads_noise else -h, float(other[i + 1] / other[i])
            if math.isinf(h):  # σ' = 0, where x is α'·x₀, which no corrector follows
                end = -sigma[i] * alpha[i + 1] / alpha[i] if self._reads_noise else alpha[i + 1]
                steps[0].append((Sum(keep, (float(end),)),))
                continue
            most = min(self._settings["solver_order"], i + 1)
            ratios = (lam[i - most + 1 : i][::-1] - lam[i]) / (h or 1)
            for sums, corrects in zip(steps, (False, True), strict=True):
                orders = [scale[i + 1] * self._weights(hh, ratios[:earlier], corrects) for earlier in range(most)]
                sums.append(tuple(Sum(keep, tuple(weights.tolist())) for weights in orders))
        return steps

    def _weights(self, hh: float, ratios: np.ndarray, corrects: bool) -> np.ndarray:
        """The weights of m and the outputs at `ratios` rₖ of the step before it, after the newest if this `corrects`.

        The ρ solve Σ ρₖ·rₖ^(j−1) = j!·φ_{j+1}(hh)/B(h) for j = 1, 2, … (theorem 3.1).
        """
        if hh == 0:
            return np.zeros(1 + len(ratios) + corrects)  # a step of no length
        growth = math.expm1(hh)
        b = growth if self.config["solver_type"] == "bh2" else hh
        r = np.append(ratios, 1.0) if corrects else ratios
        phi, moments = growth / hh - 1, []
        for j in range(1, len(r) + 1):
            moments.append(phi * math.factorial(j) / b)
            phi = phi / hh - 1 / math.factorial(j + 1)
        # With one unknown, 1/2 serves both forms of B(h) (sec. 3.1).
        rho = np.linalg.solve(np.vander(r, increasing=True).T, moments) if len(r) > 1 else np.full(len(r), 0.5)
        weights = -b * rho / r
        first = -growth - weights.sum()
        return np.array([weights[-1], first, *weights[:-1]] if corrects else [first, *weights])
