"""What a diffusion model is trained to do: the loss of a batch, for any prediction type, from the prediction table."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ConfigError, InputError
from ..schedulers.prediction import prediction_row, training_target
from .draws import Draws

Batch = dict[str, torch.Tensor]


def alpha_sigma(scheduler: Any, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """α and σ of `timesteps` (integers in [0, num_train_timesteps)), float32, in their shape and on their device."""
    cumulative = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    return cumulative.sqrt(), (1.0 - cumulative).sqrt()


def compute_snr(noise_scheduler: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """The signal-to-noise ratio α²/σ² at `timesteps` (integers in [0, num_train_timesteps)), in their shape."""
    alpha, sigma = alpha_sigma(noise_scheduler, timesteps)
    return (alpha / sigma) ** 2


class Loss(NamedTuple):
    """`total` is what is differentiated (0-d: the mean over samples); `metrics` are further 0-d tensors to log."""

    total: torch.Tensor
    metrics: dict[str, torch.Tensor]


class DenoisingObjective:
    """The denoising loss of DDPM (Ho et al. 2020, eq. 14) for a network that predicts what `scheduler.config` says.

    A batch holds `images` (B, C, H, W) in [−1, 1] and, for a class-conditional model, `class_labels` (B,) integers.
    t is drawn uniformly, stratified over consecutive samples. With `min_snr_gamma` the loss is weighted as in Hang et
    al. 2023 (arXiv:2303.09556, sec. 3.4): the error of x₀ counts min(SNR, γ). With `label_dropout` that share of labels
    becomes `null_label`, which is what classifier-free guidance needs (Ho & Salimans 2022, arXiv:2207.12598, alg. 1).
    `use_labels=False` ignores the labels of the data.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        min_snr_gamma: float | None = None,
        label_dropout: float = 0.0,
        null_label: int | None = None,
        use_labels: bool = True,
    ):
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise ConfigError(f"min_snr_gamma is {min_snr_gamma}; it must be positive, or None for no weighting")
        if not 0 <= label_dropout < 1:
            raise ConfigError(f"label_dropout is {label_dropout}; it must be in [0, 1)")
        if label_dropout and null_label is None:
            raise ConfigError("label_dropout needs null_label, the label that stands for 'no class'")
        self.scheduler = scheduler
        self.min_snr_gamma, self.label_dropout, self.null_label = min_snr_gamma, label_dropout, null_label
        self.use_labels = use_labels

    def __call__(self, model: nn.Module, batch: Batch, draws: Draws) -> Loss:
        if "images" not in batch:
            raise InputError(f"the batch holds {sorted(batch)}, but the denoising objective needs 'images'")
        clean = batch["images"]
        steps = self.scheduler.config.num_train_timesteps
        timesteps = (draws.stratified() * steps).long().to(clean.device)
        noise = draws.normal(clean.shape[1:]).to(clean.device)
        alpha, sigma = alpha_sigma(self.scheduler, timesteps)
        wide_alpha, wide_sigma = (value.view(-1, *[1] * (clean.ndim - 1)) for value in (alpha, sigma))
        kind = self.scheduler.config.prediction_type
        prediction = model(
            wide_alpha * clean + wide_sigma * noise, timesteps, **self._conditioning(batch, draws)
        ).sample
        target = training_target(kind, clean, noise, wide_alpha, wide_sigma)
        errors = (prediction.float() - target).square().flatten(1).mean(1)
        if self.min_snr_gamma is not None:
            errors = errors * self._weight(kind, alpha, sigma)
        return Loss(errors.mean(), {})

    def _weight(self, kind: str, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """min(SNR, γ) as a weight on the network's own error: x₀'s error is σ/det times it (det = αq − σp)."""
        p, q = prediction_row(kind, alpha, sigma)
        return (alpha / sigma).square().clamp(max=self.min_snr_gamma) * (sigma / (alpha * q - sigma * p)).square()

    def _conditioning(self, batch: Batch, draws: Draws) -> Batch:
        if not self.use_labels or "class_labels" not in batch:
            return {}
        labels = batch["class_labels"]
        if self.label_dropout:
            dropped = (draws.uniform() < self.label_dropout).to(labels.device)
            labels = torch.where(dropped, torch.full_like(labels, self.null_label or 0), labels)
        return {"class_labels": labels}
