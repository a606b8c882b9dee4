"""Embeddings of time, and of what is added to it."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..errors import ConfigError, InputError
from .activations import activation
from .attention import attention, split_heads


def timestep_embedding(
    timesteps: torch.Tensor,
    embedding_dim: int,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1,
    scale: float = 1,
    max_period: int = 10000,
) -> torch.Tensor:
    """Sinusoids of t (B,), in the units the model was trained with (mostly [0, 1000]): (B, embedding_dim), float32.

    Ho et al. 2020, after Vaswani et al. 2017, section 3.5: [sin(t f), cos(t f)], or the reverse if `flip_sin_to_cos`,
    with f_k = max_period^(−k / (embedding_dim/2 − downscale_freq_shift)). Raises `InputError` unless t is 1-D.
    """
    if timesteps.ndim != 1:
        raise InputError(f"timesteps have the shape {tuple(timesteps.shape)}, but one dimension is needed")
    half = embedding_dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = scale * (timesteps[:, None].float() * torch.exp(exponent / (half - downscale_freq_shift)))
    return _sin_cos(angles, flip_sin_to_cos, odd=embedding_dim % 2)


def batch_of_times(timestep: torch.Tensor | float, sample: torch.Tensor) -> torch.Tensor:
    """`timestep`, one for all or one per picture of `sample` (B, …), as (B,) on its device; else an `InputError`."""
    if not isinstance(timestep, torch.Tensor):
        return torch.full((len(sample),), timestep, device=sample.device)
    if timestep.ndim > 1 or timestep.numel() not in (1, len(sample)):
        shape = tuple(timestep.shape)
        raise InputError(f"timestep has the shape {shape}, but one for all or one for each of {len(sample)} is needed")
    return timestep.to(sample.device).reshape(-1).expand(len(sample))


def check_class_labels(embedding: nn.Module | None, labels: torch.Tensor | None, batch: int) -> None:
    """Raise `InputError` unless there is a label per picture, in range, exactly if there is an `embedding` for them."""
    if (labels is None) != (embedding is None):
        state = "missing: this model is" if labels is None else "given, but this model is not"
        raise InputError(f"class_labels are {state} conditioned on classes")
    if labels is None:
        return
    if labels.ndim == 0 or len(labels) not in (1, batch):
        raise InputError(f"class_labels have the shape {tuple(labels.shape)} for a batch of {batch}")
    # On other devices a look at the values would wait for all work that is under way.
    if isinstance(embedding, nn.Embedding) and labels.device.type == "cpu":
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= embedding.num_embeddings:
            raise InputError(f"class_labels range from {low} to {high}, but must be in [0, {embedding.num_embeddings})")


def _sin_cos(angles: torch.Tensor, flip: bool, odd: int = 0) -> torch.Tensor:
    parts = [angles.cos(), angles.sin()] if flip else [angles.sin(), angles.cos()]
    return nn.functional.pad(torch.cat(parts, dim=-1), (0, odd))


class Timesteps(nn.Module):
    """`timestep_embedding` as a module; it has no parameters."""

    def __init__(self, num_channels: int, flip_sin_to_cos: bool, downscale_freq_shift: float, scale: float = 1):
        super().__init__()
        self.num_channels, self.flip_sin_to_cos = num_channels, flip_sin_to_cos
        self.downscale_freq_shift, self.scale = downscale_freq_shift, scale

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        shift, scale = self.downscale_freq_shift, self.scale
        return timestep_embedding(timesteps, self.num_channels, self.flip_sin_to_cos, shift, scale)


class GaussianFourierProjection(nn.Module):
    """Random Fourier features of t (B,), or of log t if `log`: (B, 2·embedding_size) (Song et al. 2021, NCSN++).

    The frequencies are drawn once, with deviation `scale`, and are part of the weights, but never trained.
    """

    def __init__(self, embedding_size: int = 256, scale: float = 1.0, log: bool = True, flip_sin_to_cos: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(embedding_size) * scale, requires_grad=False)
        self.log, self.flip_sin_to_cos = log, flip_sin_to_cos

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        t = torch.log(timesteps) if self.log else timesteps
        return _sin_cos(t[:, None] * self.weight * 2 * math.pi, self.flip_sin_to_cos)


class TimestepEmbedding(nn.Module):
    """Two linear layers: (B, in_channels) -> (B, time_embed_dim), the embedding that residual blocks take.

    `cond_proj_dim`: the width of a condition that is projected and added to the input (a guidance scale, say).
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        act_fn: str = "silu",
        out_dim: int | None = None,
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
    ):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.cond_proj = nn.Linear(cond_proj_dim, in_channels, bias=False) if cond_proj_dim is not None else None
        self.act = activation(act_fn)
        self.linear_2 = nn.Linear(time_embed_dim, out_dim or time_embed_dim)
        self.post_act = activation(post_act_fn, "timestep_post_act") if post_act_fn is not None else None

    def forward(self, sample: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Raises `InputError` for a condition that the module has no projection for."""
        if condition is not None:
            if self.cond_proj is None:
                raise InputError("timestep_cond was given, but the model was built without time_cond_proj_dim")
            sample = sample + self.cond_proj(condition)
        sample = self.linear_2(self.act(self.linear_1(sample)))
        return sample if self.post_act is None else self.post_act(sample)


class AttentionPooling(nn.Module):
    """One vector for a sequence: its mean asks, the mean and the tokens answer (as in CLIP's image encoders)."""

    def __init__(self, num_heads: int, embed_dim: int):
        super().__init__()
        if embed_dim % num_heads:
            raise ConfigError(f"addition_embed_type_num_heads is {num_heads}, but it must divide the width {embed_dim}")
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(1, embed_dim) / embed_dim**0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=1, keepdim=True) + self.positional_embedding.to(x.dtype)
        x = torch.cat([mean, x], dim=1)
        q, k, v = (split_heads(y, self.num_heads) for y in (self.q_proj(mean), self.k_proj(x), self.v_proj(x)))
        return attention(q, k, v).transpose(1, 2).flatten(1)


class TextTimeEmbedding(nn.Module):
    """Text states (B, tokens, encoder_dim) pooled to an addition to the time embedding, (B, time_embed_dim)."""

    def __init__(self, encoder_dim: int, time_embed_dim: int, num_heads: int = 64):
        super().__init__()
        self.norm1 = nn.LayerNorm(encoder_dim)
        self.pool = AttentionPooling(num_heads, encoder_dim)
        self.proj = nn.Linear(encoder_dim, time_embed_dim)
        self.norm2 = nn.LayerNorm(time_embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(x))))
