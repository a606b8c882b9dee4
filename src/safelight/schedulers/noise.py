"""How much noise there is at each training timestep: beta schedules, ᾱ, zero terminal SNR."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, check_choice


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def betas_for_alpha_bar(
    steps: int, max_beta: float = 0.999, alpha_bar: Callable[[float], float] = _cosine
) -> torch.Tensor:
    """β₁ … β_steps (float32) whose running product of 1 − β is ᾱ(t), t in [0, 1] (Nichol & Dhariwal 2021, sec. 3.2)."""
    # Not with numpy: where β is near 1, one unit in the last place of its cosine is a part in 10⁴ of 1 − β.
    edges = [alpha_bar(i / steps) for i in range(steps + 1)]
    return torch.tensor([min(1 - after / before, max_beta) for before, after in pairwise(edges)])


_SCHEDULES: dict[str, Callable[[int, float, float], torch.Tensor]] = {
    "linear": lambda steps, start, end: torch.linspace(start, end, steps, dtype=torch.float32),
    # latent diffusion's: linear in √β
    "scaled_linear": lambda steps, start, end: torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2,
    "squaredcos_cap_v2": lambda steps, start, end: betas_for_alpha_bar(steps),
    "exp": lambda steps, start, end: betas_for_alpha_bar(steps, alpha_bar=lambda t: math.exp(-12 * t)),
    "laplace": lambda steps, start, end: betas_for_alpha_bar(steps, alpha_bar=_laplace),
    # GeoDiff's
    "sigmoid": lambda steps, start, end: torch.sigmoid(torch.linspace(-6, 6, steps)) * (end - start) + start,
}

BETA_SCHEDULES = tuple(_SCHEDULES)


def make_betas(config: Any) -> torch.Tensor:
    """The β of each training timestep, (num_train_timesteps,) float32, from a scheduler's config.

    Raises `ConfigError` for an unknown `beta_schedule`, a β outside [0, 1], or `trained_betas` of another length.
    """
    steps, trained = config["num_train_timesteps"], config.get("trained_betas")
    start, end = config.get("beta_start", 0.0), config.get("beta_end", 1.0)  # which not every schedule has
    check_choice("beta_schedule", config["beta_schedule"], BETA_SCHEDULES)
    if trained is not None:
        betas = torch.as_tensor(np.array(trained, dtype=np.float64)).float()
        if betas.shape != (steps,):
            raise ConfigError(
                f"trained_betas has shape {tuple(betas.shape)}, but num_train_timesteps={steps} needs ({steps},)"
            )
        given = "trained_betas"
    else:
        if not 0 <= start <= 1 or not 0 <= end <= 1:
            raise ConfigError(f"beta_start={start!r}, beta_end={end!r}: both must be within [0, 1]")
        betas = _SCHEDULES[config["beta_schedule"]](steps, start, end)
        given = f"beta_schedule {config['beta_schedule']!r} with beta_start={start}, beta_end={end}"
    if not ((betas >= 0) & (betas <= 1)).all():
        raise ConfigError(f"{given} gives betas outside [0, 1]")
    return rescale_zero_terminal_snr(betas) if config.get("rescale_betas_zero_snr") else betas


def rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """`betas` (float32) changed so that nothing of the image is left at the last step (Lin et al. 2023, alg. 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    if first == last:
        raise ConfigError(f"rescale_betas_zero_snr needs betas that add noise over at least two steps, not {betas}")
    alpha_bar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def signal_and_noise(alphas_cumprod: torch.Tensor) -> tuple[list[float], list[float]]:
    """α = √ᾱ and σ = √(1 − ᾱ) of each entry, computed in the tensor's precision."""
    return alphas_cumprod.sqrt().tolist(), (1 - alphas_cumprod).sqrt().tolist()
