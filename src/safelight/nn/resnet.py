"""Residual blocks, and the resampling between resolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import ConfigError, InputError, check_choice
from .activations import activation

_INT32_MAX = 2**31 - 1


def group_norm(groups: int | None, channels: int, eps: float, what: str = "norm_num_groups") -> nn.GroupNorm:
    """A group norm; raises `ConfigError`, naming the argument `what`, if the groups do not divide the channels."""
    if not isinstance(groups, int) or groups <= 0 or channels % groups:
        raise ConfigError(f"{what} is {groups!r}, but a number that divides the {channels} channels is needed")
    return nn.GroupNorm(groups, channels, eps)


class Downsample2D(nn.Module):
    """Halve height and width of (B, C, H, W), by a strided 3×3 convolution (`use_conv`) or by averaging.

    `padding` 0 stands for one row and column of zeros at the far sides only. `name` is accepted and has no effect.
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
        out_channels = out_channels or channels
        if not use_conv and out_channels != channels:
            raise ConfigError(f"averaging cannot change {channels} channels to {out_channels}")
        self.channels, self.out_channels, self.padding = channels, out_channels, padding
        self.conv = nn.Conv2d(channels, out_channels, 3, stride=2, padding=padding) if use_conv else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample2D(nn.Module):
    """Double height and width of (B, C, H, W), or reach `size`, by repeating pixels; then, `use_conv`, convolve 3×3."""

    def __init__(self, channels: int, use_conv: bool = False, out_channels: int | None = None):
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.conv = nn.Conv2d(channels, self.out_channels, 3, padding=1) if use_conv else None

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        height, width = size or (2 * x.shape[2], 2 * x.shape[3])
        if x.shape[0] * x.shape[1] * height * width > _INT32_MAX:
            x = x.contiguous()  # the channels-last kernel counts in 32 bits
        x = F.interpolate(x, size=(height, width), mode="nearest")
        return x if self.conv is None else self.conv(x)


def _fir(x: torch.Tensor) -> torch.Tensor:
    """The filter [1, 3, 3, 1] ⊗ [1, 3, 3, 1] / 64, once per channel of `x`."""
    taps = torch.tensor((1.0, 3.0, 3.0, 1.0), dtype=x.dtype, device=x.device) / 8
    return torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)


class FirDownsample2D(nn.Module):
    """Halve height and width behind a smoothing filter (Song et al. 2021, "NCSN++", after Zhang 2019)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, _fir(x), stride=2, padding=1, groups=x.shape[1])


class FirUpsample2D(nn.Module):
    """Double height and width, filling in with the same smoothing filter."""

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        return F.conv_transpose2d(x, 4 * _fir(x), stride=2, padding=1, groups=x.shape[1])


class ResnetBlock2D(nn.Module):
    """norm, act, conv, + time embedding, norm, act, conv, + input (He et al. 2016; Dhariwal & Nichol 2021, appendix A).

    `temb_channels` None: no time embedding. `time_embedding_norm` "scale_shift" lets it scale and shift the second
    norm's output instead of being added; `skip_time_act`: it comes activated. `up` / `down` resample between the first
    activation and the first convolution, with the smoothing filter if `kernel` is "fir". `use_in_shortcut` puts a 1×1
    convolution on the input even if the width stays. The sum is divided by `output_scale_factor`.
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
        kernel: str | None = None,
        output_scale_factor: float = 1.0,
        use_in_shortcut: bool | None = None,
        up: bool = False,
        down: bool = False,
    ):
        super().__init__()
        out_channels = out_channels or in_channels
        check_choice("resnet_time_scale_shift", time_embedding_norm, ("default", "scale_shift"))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.scale_shift = time_embedding_norm == "scale_shift"
        self.skip_time_act, self.output_scale_factor = skip_time_act, output_scale_factor
        self.norm1 = group_norm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        time_width = 2 * out_channels if self.scale_shift else out_channels
        self.time_emb_proj = None if temb_channels is None else nn.Linear(temb_channels, time_width)
        self.norm2 = group_norm(groups_out or groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = activation(non_linearity)
        self.upsample = (FirUpsample2D() if kernel == "fir" else Upsample2D(in_channels)) if up else None
        self.downsample = (FirDownsample2D() if kernel == "fir" else Downsample2D(in_channels)) if down else None
        shortcut = in_channels != out_channels if use_in_shortcut is None else use_in_shortcut
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if shortcut else None

    def forward(
        self, x: torch.Tensor, temb: torch.Tensor | None = None, size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """x (B, in_channels, H, W), temb (B, temb_channels), `size` to upsample to -> (B, out_channels, H', W')."""
        h = self.nonlinearity(self.norm1(x))
        if self.upsample is not None:
            x, h = self.upsample(x, size), self.upsample(h, size)
        elif self.downsample is not None:
            x, h = self.downsample(x), self.downsample(h)
        h = self.conv1(h)
        if self.time_emb_proj is None:
            h = self.norm2(h)
        elif temb is None:
            raise InputError("temb is None, but this residual block was built with temb_channels")
        else:
            t = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))[:, :, None, None]
            if self.scale_shift:
                scale, shift = t.chunk(2, dim=1)
                h = torch.addcmul(shift, self.norm2(h), 1 + scale)
            else:
                h = self.norm2(h + t)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        out = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        return out if self.output_scale_factor == 1.0 else out / self.output_scale_factor
