"""What networks predict: epsilon, sample, v and flow as one table, read by every solver and every training objective.

A noisy sample is x = α·x₀ + σ·ε and a network predicts y = p·x₀ + q·ε. With det = α·q − σ·p it follows that
x₀ = (q·x − σ·y)/det and ε = (α·y − p·x)/det.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from ..errors import InputError, check_choice

# prediction_type -> (p, q) for α, σ given as floats or tensors.
_TABLE: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "epsilon": lambda alpha, sigma: (0.0, 1.0),
    "sample": lambda alpha, sigma: (1.0, 0.0),
    "v_prediction": lambda alpha, sigma: (-sigma, alpha),
    "flow_prediction": lambda alpha, sigma: (-1.0, 1.0),
}
_TABLE["original_sample"] = _TABLE["sample"]  # an old spelling that configs of Euler-like solvers may carry

PREDICTION_TYPES = tuple(_TABLE)


def prediction_row(prediction_type: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """(p, q) of y = p·x₀ + q·ε; `alpha` and `sigma` are floats or tensors. Raises `ConfigError` for an unknown type."""
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    return _TABLE[prediction_type](alpha, sigma)


def training_target(prediction_type: str, x0: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
    """What the network should predict for x = α·x₀ + σ·ε: p·x₀ + q·ε.

    `x0` and `noise` are (B, …); `alpha` and `sigma` floats or tensors that broadcast against them.
    """
    p, q = prediction_row(prediction_type, alpha, sigma)
    if isinstance(p, float) and isinstance(q, float) and {p, q} == {0.0, 1.0}:
        return x0 if p else noise
    return p * x0 + q * noise


class Mix(NamedTuple):
    """(on_x·x + on_y·y) / over of two tensors, such as a sample x and a model output y."""

    on_x: float
    on_y: float
    over: float = 1.0

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Evaluate; returns `y` itself where that is the answer.

        Where there is more than one product, each operation rounds once and a small divisor comes last: at α near zero,
        where rounding errors grow by 1/α, another order would give another x₀ than the reference's.
        """
        on_x, on_y, over = self
        if on_x == 0.0:
            return y if on_y == over else y * (on_y / over)
        if on_x == over == 1.0:
            return torch.add(x, y, alpha=on_y)
        mixed, other = y * on_y, x if on_x == 1.0 else x * on_x
        mixed = mixed.add_(other) if mixed.dtype == x.dtype else mixed + other
        return mixed if over == 1.0 else mixed.div_(over)

    def solve(self, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """The y that gives `mixed`; zeros where it does not depend on y."""
        if self.on_y == 0.0:
            return torch.zeros_like(x)
        return (mixed * self.over - x * self.on_x) / self.on_y

    def of_scaled(self, scale: float) -> Mix:
        """The same reading of x when what was meant by x is `scale`·x."""
        return Mix(self.on_x * scale / self.over, self.on_y / self.over)


class Reading(NamedTuple):
    """How x₀ and ε follow from (x, y) at one noise level."""

    x0: Mix
    eps: Mix


def reading(prediction_type: str, alpha: float, sigma: float) -> Reading:
    """The `Reading` of a network of this type at one noise level (floats).

    Two places are singular. A network that predicts ε says nothing about x₀ where α = 0: division by zero then gives
    ±infinity, which a solver may use only behind a clip (`refuse_singular`). One that predicts x₀ says nothing about ε
    where σ = 0; ε then has no weight in any sample, and is taken as 0.
    """
    p, q = prediction_row(prediction_type, alpha, sigma)
    det = alpha * q - sigma * p
    det = 1.0 if abs(det - 1.0) < 1e-6 else det  # α² + σ² = 1 up to float32 rounding
    x0 = Mix(q, -sigma, det) if q else Mix(0.0, 1.0, p)
    if not p:
        eps = Mix(0.0, 1.0, q)
    elif det:
        # Dividing by −det keeps x's factor positive: for "sample" this is (x − α·x₀)/σ, rounding included.
        eps = Mix(p, -alpha, -det) if det < 0 else Mix(-p, alpha, det)
    else:
        eps = Mix(0.0, 0.0)
    return Reading(x0, eps)


def refuse_singular(readings: list[Reading], clipped: bool, times: Any) -> None:
    """Raise `InputError` where x₀ would come out infinite: a network that predicts ε, α = 0, and no clip.

    Dynamic thresholding does not help, as it takes quantiles of infinite values.
    """
    for one, time in zip(readings, times, strict=True):
        if one.x0.over == 0.0 and not clipped:
            raise InputError(
                f"at timestep {time} the signal is zero (rescale_betas_zero_snr), where a network with "
                "prediction_type='epsilon' says nothing about the image; use a v_prediction or sample network with "
                "it, set clip_sample (without thresholding), or leave that timestep out"
            )


def threshold(x0: torch.Tensor, ratio: float, largest: float) -> torch.Tensor:
    """Dynamic thresholding (Saharia et al. 2022, "Imagen", sec. 2.3) of (B, …) predictions.

    s is the `ratio` quantile of |x₀| per batch row, within [1, `largest`]; x₀ is clipped to [−s, s] and divided by s.
    """
    wide = x0 if x0.dtype in (torch.float32, torch.float64) else x0.float()
    flat = wide.reshape(wide.shape[0], -1)
    limit = torch.quantile(flat.abs(), ratio, dim=1).clamp(min=1.0, max=largest).unsqueeze(1)
    return (flat.clamp(-limit, limit) / limit).reshape(x0.shape).to(x0.dtype)


def limiter(config: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What the config does to predictions of x₀: dynamic thresholding, else clipping, else nothing (None)."""
    if config.get("thresholding"):
        return partial(threshold, ratio=config["dynamic_thresholding_ratio"], largest=config["sample_max_value"])
    if config.get("clip_sample"):
        edge = config["clip_sample_range"]
        return partial(torch.clamp, min=-edge, max=edge)
    return None
