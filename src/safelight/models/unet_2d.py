"""The U-Net of pixel and unconditional latent diffusion: a picture and a time in, a picture out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from ..configuration import register_to_config
from ..errors import ConfigError, InputError, check_choice
from ..nn.attention import OLD_ATTENTION_KEYS, AttentionSeam
from ..nn.blocks import (
    MID_KINDS,
    PICTURE_CHANNELS,
    Kind,
    MidStage,
    StageOptions,
    check_levels,
    down_stages,
    run_down,
    run_up,
    up_stages,
)
from ..nn.embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps, batch_of_times, check_class_labels
from ..nn.resnet import group_norm
from ..outputs import Output
from .base import ModelMixin


@dataclass
class UNet2DOutput(Output):
    """`sample`: (B, out_channels, H, W)."""

    sample: torch.Tensor


class UNet2DModel(ModelMixin, AttentionSeam):
    """Predict noise, the clean picture or a score from a noisy picture and its time (Ho et al. 2020; Song et al. 2021).

    `block_out_channels`, `down_block_types` and, reversed, `up_block_types` go from the highest resolution to the
    lowest; each level but the last halves it. `attention_head_dim` is the width of a head (None: one head).
    `time_embedding_type` "positional": t in the units of training, mostly [0, 1000]; "fourier": t is σ, and the output
    is divided by it; "learned": t counts from 0 to `num_train_timesteps` − 1. `class_embed_type` None with
    `num_class_embeds`: labels are numbers; "timestep": they are embedded as times are; "identity": they are embeddings.
    Raises `ConfigError` for values that do not exist or do not fit together.
    """

    _old_keys: ClassVar[Sequence[tuple[str, str]]] = OLD_ATTENTION_KEYS

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ):
        super().__init__()
        self.sample_size = sample_size
        widths = tuple(block_out_channels)
        check_levels(widths, down_block_types, up_block_types, lambda kind: kind.attention in (None, "spatial"))
        layers = [layers_per_block] * len(widths)
        temb = time_embedding_dim or widths[0] * 4

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        check_choice("time_embedding_type", time_embedding_type, ("positional", "fourier", "learned"))
        time_width = widths[0]
        if time_embedding_type == "fourier":
            time_width = 2 * widths[0]
            self.time_proj: nn.Module = GaussianFourierProjection(widths[0], scale=16)
        elif time_embedding_type == "positional":
            self.time_proj = Timesteps(widths[0], flip_sin_to_cos, freq_shift)
        elif num_train_timesteps is None:
            raise ConfigError('time_embedding_type "learned" needs num_train_timesteps, the number of embeddings')
        else:
            self.time_proj = nn.Embedding(num_train_timesteps, widths[0])
        self.time_embedding = TimestepEmbedding(time_width, temb)

        self.class_embedding: nn.Module | None = None
        if class_embed_type is not None:
            check_choice("class_embed_type", class_embed_type, ("timestep", "identity"))
            identity = class_embed_type == "identity"
            self.class_embedding = nn.Identity() if identity else TimestepEmbedding(time_width, temb)
        elif num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, temb)

        shared = StageOptions(
            temb,
            norm_eps,
            act_fn,
            norm_num_groups,
            dropout=dropout,
            time_scale_shift=resnet_time_scale_shift,
            downsample_padding=downsample_padding,
            attention_groups=norm_num_groups,
        )
        levels = [replace(shared, head_dim=attention_head_dim or width) for width in widths]
        downs = [replace(level, resample=downsample_type) for level in levels]
        ups = [replace(level, resample=upsample_type) for level in reversed(levels)]
        self.down_blocks = down_stages(down_block_types, widths, layers, downs)
        self.mid_block: MidStage | None = None
        if mid_block_type is not None:
            check_choice("mid_block_type", mid_block_type, ("UNetMidBlock2D",))
            kind = MID_KINDS[mid_block_type] if add_attention else Kind()
            middle = replace(levels[-1], attention_groups=attn_norm_num_groups, out_scale_factor=mid_block_scale_factor)
            self.mid_block = MidStage(kind, middle, widths[-1])
        self.up_blocks = up_stages(up_block_types, widths, layers, ups)
        for what, channels, names in (
            ("in_channels", in_channels, down_block_types),
            ("out_channels", out_channels, up_block_types),
        ):
            if channels != PICTURE_CHANNELS and any("Skip" in name for name in names):
                raise ConfigError(f"{what} is {channels}, but Skip… blocks work on {PICTURE_CHANNELS} channels")

        groups_out = norm_num_groups if norm_num_groups is not None else min(widths[0] // 4, 32)
        self.conv_norm_out = group_norm(groups_out, widths[0], norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """sample (B, in_channels, H, W), timestep a number or (B,) -> (B, out_channels, H, W).

        `class_labels` (B,), or (B, time embedding) for "identity". Any H and W will do, except that `Skip…` blocks need
        multiples of 2^(levels − 1). `return_dict=False` gives a tuple. Raises `InputError` for what does not fit.
        """
        self._check(sample, class_labels)
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        dtype = self.conv_in.weight.dtype
        times = batch_of_times(timestep, sample)
        emb = self.time_embedding(self.time_proj(times).to(dtype))
        if self.class_embedding is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(dtype)
            emb = emb + self.class_embedding(class_labels).to(dtype)

        x, kept = run_down(self.down_blocks, self.conv_in(sample), emb, picture=sample)
        if self.mid_block is not None:
            x = self.mid_block(x, emb)
        x, picture = run_up(self.up_blocks, x, kept, emb)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        if picture is not None:
            x = x + picture
        if self.config.time_embedding_type == "fourier":
            x = x / times.reshape(-1, 1, 1, 1).to(dtype)
        return UNet2DOutput(x) if return_dict else (x,)

    def _check(self, sample: torch.Tensor, class_labels: torch.Tensor | None) -> None:
        channels = self.config.in_channels
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise InputError(
                f"sample has the shape {tuple(sample.shape)}, but (batch, {channels}, height, width) is needed"
            )
        check_class_labels(self.class_embedding, class_labels, len(sample))
