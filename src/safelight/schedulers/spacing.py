"""Which noise levels a run visits: grids of timesteps and of sigmas."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, InputError, MissingDependencyError, check_choice

logger = logging.getLogger(__name__)


def _leading(train: int, steps: int, offset: int) -> np.ndarray:
    if steps > train:
        raise InputError(f"num_inference_steps is {steps}; leading spacing takes at most num_train_timesteps={train}")
    return np.arange(steps)[::-1] * (train // steps) + offset


def _trailing(train: int, steps: int, offset: int) -> np.ndarray:
    return np.round(np.arange(train, 0, -train / steps)) - 1


_SPACINGS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "linspace": lambda train, steps, offset: np.linspace(0, train - 1, steps)[::-1],
    "leading": _leading,
    "trailing": _trailing,
}

SPACINGS = tuple(_SPACINGS)


def spaced(spacing: str, train: int, steps: int, offset: int = 0, corrected: bool = False) -> np.ndarray:
    """`steps` descending timesteps in [0, train), float64, unrounded for "linspace" (Lin et al. 2023, table 2).

    `offset` is `steps_offset`, which only "leading" uses. A quirk is kept: for some step counts (61 of 1000, …)
    "trailing" accumulates rounding error into an extra last timestep −1; `corrected` leaves it out.
    """
    check_choice("timestep_spacing", spacing, SPACINGS)
    times = _SPACINGS[spacing](train, steps, offset).astype(np.float64)
    if corrected:
        times = times[:steps]
    elif times[-1] < 0:
        logger.warning(
            "trailing spacing with %d steps ends in an extra timestep -1, as elsewhere; corrected=True drops it",
            steps,
        )
    return times


def ending_above_zero(spacing: str, train: int, last: int, steps: int, offset: int, corrected: bool) -> np.ndarray:
    """`steps` descending whole timesteps below `last`, of which the final one is a step above 0 (Lu et al. 2022)."""
    if spacing == "trailing":
        return (np.round(np.arange(last, 0, -train / steps)) - 1)[: steps if corrected else None]
    return spaced(spacing, last, steps + 1, offset).round()[:-1]


def karras(low: float, high: float, steps: Any, rho: float = 7.0) -> Any:
    """Sigmas that are linear in σ^(1/ρ), descending from `high` to `low` (Karras et al. 2022, eq. 5).

    `steps` is their number, or an array or tensor of places in [0, 1] from the first to the last.
    """
    ramp = np.linspace(0, 1, steps) if isinstance(steps, int) else steps
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential(low: float, high: float, steps: int) -> np.ndarray:
    """Sigmas that are linear in log σ, descending from `high` to `low`."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def even_lambdas(low: float, high: float, steps: int) -> np.ndarray:
    """`exponential`, but for the rounding of its ends to float32: evenly spaced λ = −log σ (Lu et al. 2022)."""
    first, last = np.log(np.array([high, low], dtype=np.float32)).tolist()
    return np.exp(np.linspace(first, last, steps))


def beta(low: float, high: float, steps: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Sigmas at the quantiles of Beta(`a`, `b`), descending (Lee et al. 2024, arXiv:2407.12173). Needs scipy."""
    try:
        from scipy.special import betaincinv  # the quantile function, without the import cost of scipy.stats
    except ImportError:
        raise MissingDependencyError("use_beta_sigmas needs scipy: pip install scipy") from None
    return low + betaincinv(a, b, 1 - np.linspace(0, 1, steps)) * (high - low)


# Config flag -> the grid it asks for.
_GRIDS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
    "use_lu_lambdas": even_lambdas,
}


def chosen_grid(config: Mapping[str, Any]) -> Callable[[float, float, int], np.ndarray] | None:
    """The sigma grid that the config's flags ask for, or None; raises `ConfigError` if they ask for two."""
    flags = [flag for flag in _GRIDS if config.get(flag)]
    if len(flags) > 1:
        raise ConfigError(f"{' and '.join(flags)} are both set; only one of them can be")
    return _GRIDS[flags[0]] if flags else None


# The time shifts that flow models know, by the weight that each makes of `mu`.
_TIME_SHIFTS: dict[str, Callable[[float], float]] = {"exponential": math.exp, "linear": float}

TIME_SHIFTS = tuple(_TIME_SHIFTS)


def shifted(sigmas: Any, shift: float) -> Any:
    """σ in [0, 1] moved towards 1: shift·σ/(1 + (shift − 1)·σ) (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def time_shifted(sigmas: Any, mu: float, kind: str = "exponential", power: float = 1.0) -> Any:
    """w·σᵖ/(w·σᵖ + (1 − σ)ᵖ), w = exp(μ) or, for the "linear" kind, μ: `shifted` by w where the `power` p is 1.

    `sigmas` in [0, 1] is a number, an array or a tensor. Raises `InputError` unless w is positive.
    """
    check_choice("time_shift_type", kind, TIME_SHIFTS)
    weight = _TIME_SHIFTS[kind](mu)
    if not 0 < weight < math.inf:
        raise InputError(f"mu is {mu}; a positive number is needed for the {kind} time shift")
    odds = weight * sigmas**power
    return odds / (odds + (1 - sigmas) ** power)


def stretched_to(sigmas: Any, terminal: float) -> Any:
    """Descending σ stretched away from 1 so that the last is `terminal`; where the last is 1, they stay."""
    rest = 1 - sigmas
    return 1 - rest * ((1 - terminal) / rest[-1]) if rest[-1] else sigmas


def sigma_to_t(sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
    """The (fractional) training timestep of each sigma: linear in log σ between `training_sigmas`, which ascend."""
    # In the precision of the table, as in the reference: where timesteps are cut to whole ones, a rounding decides.
    known = np.log(np.maximum(training_sigmas, 1e-10))
    return np.interp(np.log(np.maximum(sigmas, 1e-10), dtype=np.float64), known, np.arange(len(known)))


def descending(name: str, values: Sequence[float]) -> np.ndarray:
    """A caller's `timesteps` or `sigmas` as a float64 array; raises `InputError` unless finite and falling."""
    try:
        array = np.asarray([float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {values!r}; a list of numbers is needed") from None
    if not len(array) or not np.isfinite(array).all() or (np.diff(array) >= 0).any():
        raise InputError(f"{name} are {array.tolist()}; finite numbers, each smaller than the one before, are needed")
    return array
