"""The stages of a U-Net: what its block types mean, as data, and the modules that run them all."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ConfigError, check_choice
from .attention import Attention
from .resnet import Downsample2D, FirDownsample2D, FirUpsample2D, ResnetBlock2D, Upsample2D, group_norm
from .transformer import Context, Transformer2DModel, run


class Kind(NamedTuple):
    """What a block type stands for."""

    attention: str | None = None  # behind the residual blocks: "spatial", "transformer" or "added" (keys)
    resample: str = "conv"  # by "conv", "resnet", the config's "choice", or "skip": with a small picture alongside


_KINDS = {
    "{}Block2D": Kind(),
    "Attn{}Block2D": Kind("spatial", "choice"),
    "CrossAttn{}Block2D": Kind("transformer"),
    "SimpleCrossAttn{}Block2D": Kind("added", "resnet"),
    "Resnet{}sampleBlock2D": Kind(None, "resnet"),
    "Skip{}Block2D": Kind(None, "skip"),
    "AttnSkip{}Block2D": Kind("spatial", "skip"),
}
DOWN_KINDS = {name.format("Down"): kind for name, kind in _KINDS.items()}
UP_KINDS = {name.format("Up"): kind for name, kind in _KINDS.items()}
MID_KINDS = {
    "UNetMidBlock2D": Kind("spatial"),
    "UNetMidBlock2DCrossAttn": Kind("transformer"),
    "UNetMidBlock2DSimpleCrossAttn": Kind("added", "resnet"),
}
NO_CONTEXT = Context()

# Stages of the kind "skip" carry an RGB picture alongside and choose their norms themselves.
PICTURE_CHANNELS = 3
_SKIP_ATTENTION_GROUPS = 32


def kind_of(argument: str, name: str, kinds: dict[str, Kind]) -> Kind:
    """The kind of the block type `name`; raises `ConfigError`, naming the `argument` it stands in, if there is none."""
    name = name.removeprefix("UNetRes")
    check_choice(argument, name, kinds)
    return kinds[name]


@dataclass(frozen=True)
class StageOptions:
    """How one stage is built, beside its kind and its widths."""

    temb_channels: int
    eps: float
    act_fn: str
    groups: int | None  # of the norms
    dropout: float = 0.0
    time_scale_shift: str = "default"
    skip_time_act: bool = False  # heeded by kinds that resample by "resnet"
    out_scale_factor: float = 1.0  # likewise, and by the middle
    resample: str = "conv"  # the config's choice, "conv" or "resnet"
    downsample_padding: int = 1
    attention_groups: int | None = None  # of the norm before spatial attention; None: no norm
    head_dim: int = 8  # of spatial attention, and of attention to added keys
    heads: int = 8  # of transformers
    transformer_layers: int | Sequence[int] = 1
    cross_attention_dim: int = 1280
    cross_attention_norm: str | None = None
    use_linear_projection: bool = False
    only_cross_attention: bool = False
    upcast_attention: bool = False
    gated: bool = False


def _settled(kind: Kind, options: StageOptions) -> StageOptions:
    """The options that a stage of this kind, on the way down or up, heeds."""
    if kind.resample == "resnet":
        return options
    if kind.resample == "skip":
        more: dict[str, Any] = {"out_scale_factor": math.sqrt(2.0), "attention_groups": _SKIP_ATTENTION_GROUPS}
    else:
        more = {"out_scale_factor": 1.0}
    if kind.resample == "choice":
        check_choice("downsample_type or upsample_type", options.resample, ("conv", "resnet"))
    return dataclasses.replace(options, skip_time_act=False, **more)


def _check_divides(what: str, number: Any, width: int) -> None:
    if not isinstance(number, int) or number <= 0 or width % number:
        raise ConfigError(f"{what} is {number!r}, but a number that divides {width} channels is needed")


class Stage(nn.Module):
    """Residual blocks at one resolution, with attention behind some of them."""

    def __init__(
        self,
        kind: Kind,
        options: StageOptions,
        widths: Sequence[tuple[int, int, int]],  # channels of each block's input, skip connection and output
        attended: Sequence[int],  # the blocks that attention comes behind, if the kind has any
    ):
        super().__init__()
        self.kind, self.options = kind, options
        self.has_cross_attention = kind.attention in ("transformer", "added")
        self.gradient_checkpointing = False
        self.resnets = nn.ModuleList(
            self.resnet(before + skip, after, self.groups(before, skip)) for before, skip, after in widths
        )
        self.attended = tuple(attended) if kind.attention else ()
        if self.attended:
            self.attentions = nn.ModuleList(self.attention(widths[i][2], i) for i in self.attended)

    def groups(self, before: int, skip: int = 0) -> int | None:
        if self.kind.resample != "skip":
            return self.options.groups
        if self.kind.attention and skip:
            return min(before + skip // 4, 32)  # the trained models' formula, precedence and all
        return min((before + skip) // 4, 32)

    def resnet(self, in_channels: int, out_channels: int, groups: int | None, **more: Any) -> ResnetBlock2D:
        options = self.options
        return ResnetBlock2D(
            in_channels=in_channels,
            out_channels=out_channels,
            dropout=options.dropout,
            temb_channels=options.temb_channels,
            groups=groups,  # type: ignore[arg-type]  # refused there if None
            groups_out=self.groups(out_channels),
            eps=options.eps,
            non_linearity=options.act_fn,
            skip_time_act=options.skip_time_act,
            time_embedding_norm=options.time_scale_shift,
            output_scale_factor=options.out_scale_factor,
            **more,
        )

    def attention(self, width: int, layer: int) -> nn.Module:
        options = self.options
        if self.kind.attention == "transformer":
            return self.transformer(width, layer)
        _check_divides("attention_head_dim", options.head_dim, width)
        shared: dict[str, Any] = {"heads": width // options.head_dim, "dim_head": options.head_dim}
        shared.update(bias=True, upcast_softmax=True)
        if self.kind.attention == "added":
            return Attention(
                width,
                width,
                added_kv_proj_dim=options.cross_attention_dim,
                norm_num_groups=options.groups,
                only_cross_attention=options.only_cross_attention,
                cross_attention_norm=options.cross_attention_norm,
                **shared,
            )
        return Attention(
            width,
            norm_num_groups=options.attention_groups,
            eps=options.eps,
            rescale_output_factor=options.out_scale_factor,
            residual_connection=True,
            **shared,
        )

    def transformer(self, width: int, layer: int) -> nn.Module:
        options = self.options
        _check_divides("the number of heads (attention_head_dim or num_attention_heads)", options.heads, width)
        shape = (options.heads, width // options.heads, width)
        layers = options.transformer_layers
        if not isinstance(layers, int):
            if layer >= len(layers):
                raise ConfigError(f"transformer_layers_per_block has {list(layers)}, too few for a stage of its level")
            layers = layers[layer]
        return Transformer2DModel(
            *shape,
            layers,
            options.cross_attention_dim,
            options.groups,
            use_linear_projection=options.use_linear_projection,
            only_cross_attention=options.only_cross_attention,
            upcast_attention=options.upcast_attention,
            gated=options.gated,
        )

    def layer(self, i: int, x: torch.Tensor, temb: torch.Tensor, context: Context) -> torch.Tensor:
        """The i-th residual block, and the attention behind it."""
        x = run(self.resnets[i], x, temb, checkpointing=self.gradient_checkpointing)
        if i not in self.attended:
            return x
        attention = self.attentions[self.attended.index(i)]
        if self.kind.attention == "transformer":
            return attention(x, context)
        if self.kind.attention == "added":
            text = context.encoder_hidden_states
            mask = context.encoder_attention_mask if context.attention_mask is None else context.attention_mask
            return attention(x, text, mask, **context.arguments)
        return attention(x, temb=temb)


class DownStage(Stage):
    """A stage of the way down; every output is kept for the way up."""

    def __init__(self, kind: Kind, options: StageOptions, in_channels: int, out_channels: int, layers: int, last: bool):
        inputs = [in_channels] + [out_channels] * (layers - 1)
        widths = [(before, 0, out_channels) for before in inputs]
        super().__init__(kind, _settled(kind, options), widths, range(layers))
        self.downsamplers: nn.ModuleList | None = None
        self.resnet_down: ResnetBlock2D | None = None
        if last:
            return
        groups = self.groups(out_channels)
        if kind.resample == "skip":
            fir = {"use_in_shortcut": True, "kernel": "fir", "down": True}
            self.resnet_down = self.resnet(out_channels, out_channels, groups, **fir)
            self.downsamplers = nn.ModuleList([FirDownsample2D()])
            self.skip_conv = nn.Conv2d(PICTURE_CHANNELS, out_channels, 1)
        elif "resnet" in (kind.resample, options.resample if kind.resample == "choice" else ""):
            self.downsamplers = nn.ModuleList([self.resnet(out_channels, out_channels, groups, down=True)])
        else:
            padding = options.downsample_padding
            self.downsamplers = nn.ModuleList([Downsample2D(out_channels, True, out_channels, padding)])

    def forward(
        self,
        x: torch.Tensor,
        temb: torch.Tensor,
        context: Context = NO_CONTEXT,
        residual: torch.Tensor | None = None,
        picture: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
        """x, and every output at this resolution and the next, and the picture. `residual` is a T2I adapter's."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, temb, context)
            outputs.append(x)
        # Adapters add their features before the downsampling here, and behind it in stages without text.
        if residual is not None and self.has_cross_attention:
            x = outputs[-1] = x + residual
        if self.resnet_down is not None and self.downsamplers is not None:
            picture = self.downsamplers[0](picture)
            x = self.skip_conv(picture) + self.resnet_down(x, temb)
            outputs.append(x)
        elif self.downsamplers is not None:
            downsample = self.downsamplers[0]
            x = downsample(x, temb) if isinstance(downsample, ResnetBlock2D) else downsample(x)
            outputs.append(x)
        if residual is not None and not self.has_cross_attention:
            x = outputs[-1] = x + residual
        return x, outputs, picture


class MidStage(Stage):
    """The lowest resolution: a residual block, then attention and another one, if there is attention at all."""

    def __init__(self, kind: Kind, options: StageOptions, width: int, layers: int = 1):
        groups = options.groups or min(width // 4, 32)
        normed = options.attention_groups or (groups if options.time_scale_shift == "default" else None)
        skip_time_act = options.skip_time_act and kind.resample == "resnet"
        options = dataclasses.replace(options, groups=groups, attention_groups=normed, skip_time_act=skip_time_act)
        super().__init__(kind, options, [(width, 0, width)] * (layers + 1), range(layers))

    def forward(self, x: torch.Tensor, temb: torch.Tensor, context: Context = NO_CONTEXT) -> torch.Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, x, temb, context)
        return x


class UpStage(Stage):
    """A stage of the way up, which takes back what the way down kept."""

    def __init__(
        self,
        kind: Kind,
        options: StageOptions,
        in_channels: int,
        skip_channels: Sequence[int],  # of what each layer takes back
        out_channels: int,
        last: bool,
    ):
        inputs = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        widths = [(before, skip, out_channels) for before, skip in zip(inputs, skip_channels, strict=True)]
        skips = kind.resample == "skip"
        attended = [len(widths) - 1] if skips else range(len(widths))
        super().__init__(kind, _settled(kind, options), widths, attended)
        self.freeu: tuple[float, float] | None = None
        self.upsamplers: nn.ModuleList | None = None
        self.resnet_up: ResnetBlock2D | None = None
        self.upsampler = FirUpsample2D() if skips else None
        if last:
            return
        groups = self.groups(out_channels)
        if skips:
            fir = {"use_in_shortcut": True, "kernel": "fir", "up": True}
            self.resnet_up = self.resnet(out_channels, out_channels, groups, **fir)
            self.skip_conv = nn.Conv2d(out_channels, PICTURE_CHANNELS, 3, padding=1)
            self.skip_norm = group_norm(groups, out_channels, options.eps)
            self.act = nn.SiLU()
        elif "resnet" in (kind.resample, options.resample if kind.resample == "choice" else ""):
            self.upsamplers = nn.ModuleList([self.resnet(out_channels, out_channels, groups, up=True)])
        else:
            self.upsamplers = nn.ModuleList([Upsample2D(out_channels, True, out_channels)])

    def forward(
        self,
        x: torch.Tensor,
        skips: list[torch.Tensor],
        temb: torch.Tensor,
        context: Context = NO_CONTEXT,
        picture: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x and the picture, at the next resolution; takes its share off the end of `skips`."""
        for i in range(len(self.resnets)):
            skip = skips.pop()
            if self.freeu is not None:
                x, skip = free_lunch(x, skip, *self.freeu)
            x = self.layer(i, torch.cat([x, skip], dim=1), temb, context)
        if self.upsampler is not None and picture is not None:
            picture = self.upsampler(picture)
        if self.resnet_up is not None:
            shown = self.skip_conv(self.act(self.skip_norm(x)))
            picture = shown if picture is None else picture + shown
            x = self.resnet_up(x, temb)
        elif self.upsamplers is not None:
            upsample, size = self.upsamplers[0], skips[-1].shape[2:]
            x = upsample(x, temb, size) if isinstance(upsample, ResnetBlock2D) else upsample(x, size)
        return x, picture


def free_lunch(x: torch.Tensor, skip: torch.Tensor, backbone: float, low: float) -> tuple[torch.Tensor, torch.Tensor]:
    """FreeU (Si et al. 2023, arXiv:2309.11497, eq. 4-6): scale half of x's channels and skip's lowest frequencies."""
    half = x.shape[1] // 2
    x = torch.cat([x[:, :half] * backbone, x[:, half:]], dim=1)
    frequencies = torch.fft.fft2(skip.float())
    mask = torch.ones(skip.shape[2:], device=skip.device)
    lowest = torch.tensor([-1, 0], device=skip.device)
    mask[lowest[:, None], lowest] = low
    return x, torch.fft.ifft2(frequencies * mask).real.to(skip.dtype)


def check_levels(widths: Sequence[int], down: Sequence[str], up: Sequence[str], usable: Callable[[Kind], bool]) -> None:
    """Raise `ConfigError` unless there is one block type per level and direction, each of them `usable`."""
    downs, ups = ({name: kind for name, kind in kinds.items() if usable(kind)} for kinds in (DOWN_KINDS, UP_KINDS))
    for argument, names, kinds in (("down_block_types", down, downs), ("up_block_types", up, ups)):
        if len(names) != len(widths) or not widths:
            raise ConfigError(f"{argument} has {len(names)} entries, but block_out_channels has {len(widths)}")
        for name in names:
            kind_of(argument, name, kinds)
        skips = [kinds[name.removeprefix("UNetRes")].resample == "skip" for name in names]
        # The picture has to change its size along with everything else, from where it starts.
        if any(skips) and not all(skips[:-1] if argument == "down_block_types" else skips[skips.index(True) :]):
            raise ConfigError(f"{argument} mixes blocks that carry a picture alongside (Skip…) with others")


def down_stages(
    types: Sequence[str], widths: Sequence[int], layers: Sequence[int], options: Sequence[StageOptions]
) -> nn.ModuleList:
    """The way down; all arguments are per level, from the highest resolution to the lowest."""
    stages, before = nn.ModuleList(), widths[0]
    for i, (name, width, depth, option) in enumerate(zip(types, widths, layers, options, strict=True)):
        kind = kind_of("down_block_types", name, DOWN_KINDS)
        if not isinstance(depth, int) or depth < 1:
            raise ConfigError(f"layers_per_block is {depth!r}, but a positive number is needed")
        stages.append(DownStage(kind, option, before, width, depth, last=i == len(widths) - 1))
        before = width
    return stages


def up_stages(
    types: Sequence[str], widths: Sequence[int], layers: Sequence[int], options: Sequence[StageOptions]
) -> nn.ModuleList:
    """The way up; `types` and `options` from the lowest resolution up, but `widths` and `layers` as on the way down."""
    # The channels of everything that the way down keeps, in order: of the first convolution, then of each stage.
    kept = [widths[0]]
    for i, (width, depth) in enumerate(zip(widths, layers, strict=True)):
        kept += [width] * (depth + (i < len(widths) - 1))
    stages, before = nn.ModuleList(), widths[-1]
    for i, (name, option) in enumerate(zip(types, options, strict=True)):
        width, depth = widths[-1 - i], layers[-1 - i] + 1
        taken = [kept.pop() for _ in range(depth)]
        kind = kind_of("up_block_types", name, UP_KINDS)
        stages.append(UpStage(kind, option, before, taken, width, last=i == len(widths) - 1))
        before = width
    return stages


def run_down(
    stages: Iterable[nn.Module],
    x: torch.Tensor,
    temb: torch.Tensor,
    context: Context = NO_CONTEXT,
    residuals: Sequence[torch.Tensor] = (),
    picture: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """x at the lowest resolution, and everything that was kept on the way. `residuals`: an adapter's, one per stage."""
    kept = [x]
    for stage, residual in itertools.zip_longest(stages, residuals):
        x, outputs, picture = stage(x, temb, context, residual, picture)
        kept += outputs
    return x, kept


def run_up(
    stages: Iterable[nn.Module],
    x: torch.Tensor,
    kept: list[torch.Tensor],
    temb: torch.Tensor,
    context: Context = NO_CONTEXT,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x at the highest resolution, and the picture of the stages that make one; empties `kept`."""
    picture: torch.Tensor | None = None
    for stage in stages:
        x, picture = stage(x, kept, temb, context, picture)
    return x, picture
