"""Classifier-free guidance as a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6), with the rescaling of Lin et al. 2023.

    `scale` w gives ε = ε_neg + w (ε_pos − ε_neg); w ≤ 1 means one forward without guidance. `rescale` φ in [0, 1]
    mixes in the prediction brought back to the standard deviation of ε_pos (arXiv:2305.08891, eq. 15–16).
    """

    scale: float = 1.0
    rescale: float = 0.0

    @property
    def active(self) -> bool:
        return self.scale > 1

    def combine(self, negative: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """The guided prediction from both passes, each (batch, channels, …)."""
        guided = negative + self.scale * (positive - negative)
        if self.rescale > 0:
            dims = list(range(1, positive.ndim))
            ratio = positive.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
            guided = self.rescale * (guided * ratio) + (1 - self.rescale) * guided
        return guided


def guidance_embedding(scale: float, batch: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Sinusoidal features of `scale` − 1 for networks distilled with their guidance as an input.

    Returns (batch, dim): [sin(1000 (w − 1) f), cos(…)] with f = 10000^(−k / (dim/2 − 1)) (Meng et al. 2023,
    arXiv:2210.03142; Luo et al. 2023, arXiv:2310.04378).
    """
    half = dim // 2
    step = torch.log(torch.tensor(10000.0)) / (half - 1)
    angles = torch.full((batch, 1), (scale - 1) * 1000.0, dtype=dtype) * torch.exp(
        -step * torch.arange(half, dtype=dtype)
    )
    features = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(features, (0, dim % 2))
