"""The U-Net of DDPM and its relatives: an image and a time in, an image out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..configuration import register_to_config
from ..errors import ConfigError, InputError, check_choice
from ..nn.attention import Attention, AttentionSeam
from ..nn.embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from ..nn.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from ..outputs import Output
from .base import ModelMixin


@dataclass
class UNet2DOutput(Output):
    """`sample`: (B, out_channels, H, W)."""

    sample: torch.Tensor


class Stage(nn.Module):
    """Residual blocks at one resolution, each followed by attention where there is any, then a change of resolution."""

    def __init__(self, widths: Sequence[tuple[int, int]], attention: dict | None, resnet: dict[str, Any]):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(in_channels=i, out_channels=o, **resnet) for i, o in widths)
        if attention is not None:
            self.attentions = nn.ModuleList(Attention(o, **attention) for _, o in widths)
        self.has_attention = attention is not None

    def block(self, i: int, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        x = self.resnets[i](x, temb)
        return self.attentions[i](x) if self.has_attention else x


class UNet2DModel(ModelMixin, AttentionSeam):
    """U-Net (Ho et al. 2020)."""

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
        widths = list(block_out_channels)
        if not len(down_block_types) == len(up_block_types) == len(widths):
            raise ConfigError("block_out_channels, down_block_types and up_block_types must be of one length")
        for kind in down_block_types:
            check_choice("down_block_types", kind, ("DownBlock2D", "AttnDownBlock2D"))
        for kind in up_block_types:
            check_choice("up_block_types", kind, ("UpBlock2D", "AttnUpBlock2D"))
        temb = time_embedding_dim or widths[0] * 4
        resnet = {
            "temb_channels": temb,
            "eps": norm_eps,
            "groups": norm_num_groups,
            "dropout": dropout,
            "time_embedding_norm": resnet_time_scale_shift,
            "non_linearity": act_fn,
        }

        def attention(width: int, factor: float = 1.0, groups: int | None = None) -> dict[str, Any]:
            dim = attention_head_dim or width
            return {
                "heads": width // dim,
                "dim_head": dim,
                "rescale_output_factor": factor,
                "eps": norm_eps,
                "norm_num_groups": groups or norm_num_groups,
                "residual_connection": True,
                "bias": True,
                "upcast_softmax": True,
            }

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        if time_embedding_type == "fourier":
            self.time_proj: nn.Module = GaussianFourierProjection(widths[0], scale=16)
        else:
            self.time_proj = Timesteps(widths[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(widths[0] * (1 + (time_embedding_type == "fourier")), temb)
        self.class_embedding = nn.Embedding(num_class_embeds, temb) if num_class_embeds is not None else None

        self.down_blocks = nn.ModuleList()
        last = len(widths) - 1
        for i, (kind, width) in enumerate(zip(down_block_types, widths, strict=True)):
            first = widths[max(i - 1, 0)]
            pairs = [(first if k == 0 else width, width) for k in range(layers_per_block)]
            stage = Stage(pairs, attention(width) if kind.startswith("Attn") else None, resnet)
            if i < last:
                stage.downsamplers = nn.ModuleList([Downsample2D(width, True, padding=downsample_padding)])
            self.down_blocks.append(stage)

        width = widths[-1]
        self.mid_block = nn.Module()
        self.mid_block.attentions = nn.ModuleList(
            [Attention(width, **attention(width, mid_block_scale_factor, attn_norm_num_groups))] if add_attention else []
        )
        self.mid_block.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=width, output_scale_factor=mid_block_scale_factor, **resnet) for _ in range(2)
        )

        self.up_blocks = nn.ModuleList()
        skips = [widths[0]]
        for i, width in enumerate(widths):
            skips += [width] * layers_per_block + ([width] if i < last else [])
        before = widths[-1]
        for i, (kind, width) in enumerate(zip(up_block_types, reversed(widths), strict=True)):
            pairs = []
            for _ in range(layers_per_block + 1):
                pairs.append((before + skips.pop(), width))
                before = width
            stage = Stage(pairs, attention(width) if kind.startswith("Attn") else None, resnet)
            if i < last:
                stage.upsamplers = nn.ModuleList([Upsample2D(width, use_conv=True)])
            self.up_blocks.append(stage)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """sample (B, C, H, W), timestep a number or (B,), class_labels (B,)."""
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise InputError(f"sample is {tuple(sample.shape)}; (B, {self.config.in_channels}, H, W) is needed")
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        emb = self.time_embedding(self.time_proj(times).to(self.dtype))
        if self.class_embedding is not None:
            if class_labels is None:
                raise InputError("class_labels are needed: the model has num_class_embeds")
            emb = emb + self.class_embedding(class_labels)
        x = self.conv_in(sample)
        skips = [x]
        for stage in self.down_blocks:
            for i in range(len(stage.resnets)):
                x = stage.block(i, x, emb)
                skips.append(x)
            for sampler in getattr(stage, "downsamplers", ()):
                x = sampler(x)
                skips.append(x)
        x = self.mid_block.resnets[0](x, emb)
        for one in self.mid_block.attentions:
            x = one(x)
        x = self.mid_block.resnets[1](x, emb)
        for stage in self.up_blocks:
            for i in range(len(stage.resnets)):
                x = stage.block(i, torch.cat([x, skips.pop()], dim=1), emb)
            for sampler in getattr(stage, "upsamplers", ()):
                x = sampler(x)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        if self.config.time_embedding_type == "fourier":
            x = x / times.reshape(-1, 1, 1, 1)
        return UNet2DOutput(x) if return_dict else (x,)
