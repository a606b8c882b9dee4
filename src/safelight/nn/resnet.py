"""Residual blocks and the resampling between resolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import ConfigError, check_choice

ACTIVATIONS = {"swish": nn.SiLU, "silu": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}


def activation(name: str) -> nn.Module:
    """The activation of that name; raises `ConfigError` for an unknown one."""
    check_choice("act_fn", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


class Downsample2D(nn.Module):
    """Halve height and width of (B, C, H, W), by a strided convolution or by averaging.

    `padding` 0 pads one row and column at the far sides only. `name` "op" stores the convolution under that key, as the
    VAE's originals do.
    """

    def __init__(
        self,
        channels: int,
        use_conv: bool = False,
        out_channels: int | None = None,
        padding: int = 1,
        name: str = "conv",
    ):
        super().__init__()
        self.padding, self.use_conv = padding, use_conv
        if use_conv:
            conv = nn.Conv2d(channels, out_channels or channels, 3, stride=2, padding=padding)
            self.conv = conv
        elif out_channels not in (None, channels):
            raise ConfigError(f"averaging cannot change {channels} channels to {out_channels}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.use_conv:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample2D(nn.Module):
    """Double height and width of (B, C, H, W), or reach `size`, by repeating pixels and then (`use_conv`) a convolution."""

    def __init__(
        self, channels: int, use_conv: bool = False, out_channels: int | None = None, use_conv_transpose: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, padding=1) if use_conv else None

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        scale = None if size is not None else 2.0
        x = F.interpolate(x, size=size, scale_factor=scale, mode="nearest")
        return x if self.conv is None else self.conv(x)


class ResnetBlock2D(nn.Module):
    """norm, act, conv, + time embedding, norm, act, conv, + input (He et al. 2016; Dhariwal & Nichol 2021, appendix A).

    `temb_channels` None: no time embedding. `time_embedding_norm` "scale_shift" lets it scale and shift the second norm's
    output instead of being added. `up`/`down` resample inside. The sum is divided by `output_scale_factor`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        temb_channels: int | None = 512,
        groups: int = 32,
        groups_out: int | None = None,
        eps: float = 1e-6,
        non_linearity: str = "swish",
        skip_time_act: bool = False,
        time_embedding_norm: str = "default",
        output_scale_factor: float = 1.0,
        use_in_shortcut: bool | None = None,
        up: bool = False,
        down: bool = False,
    ):
        super().__init__()
        out_channels = out_channels or in_channels
        check_choice("resnet_time_scale_shift", time_embedding_norm, ("default", "scale_shift"))
        self.scale_shift = time_embedding_norm == "scale_shift"
        self.skip_time_act, self.output_scale_factor = skip_time_act, output_scale_factor
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        width = 2 * out_channels if self.scale_shift else out_channels
        self.time_emb_proj = nn.Linear(temb_channels, width) if temb_channels is not None else None
        self.norm2 = nn.GroupNorm(groups_out or groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = activation(non_linearity)
        self.resample = Upsample2D(in_channels) if up else Downsample2D(in_channels) if down else None
        shortcut = in_channels != out_channels if use_in_shortcut is None else use_in_shortcut
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if shortcut else None

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, C_in, H, W), temb (B, temb_channels) -> (B, C_out, H, W)."""
        h = self.nonlinearity(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        scale = None
        if self.time_emb_proj is not None:
            t = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))[:, :, None, None]
            if self.scale_shift:
                scale, shift = t.chunk(2, dim=1)
            else:
                h = h + t
        h = self.norm2(h)
        if scale is not None:
            h = h * (1 + scale) + shift
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        out = x + h
        return out if self.output_scale_factor == 1.0 else out / self.output_scale_factor
