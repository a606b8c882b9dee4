"""The variational autoencoder between pixels and latents (Rombach et al. 2022, arXiv:2112.10752, section 3.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..configuration import register_to_config
from ..errors import ConfigError, InputError, check_choice
from ..nn.attention import OLD_ATTENTION_KEYS, Attention, AttentionSeam
from ..nn.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from ..outputs import Output
from ..randomness import randn_tensor
from .base import ModelMixin

_EPS = 1e-6  # of every norm

# Block type -> whether attention follows each of its residual blocks.
_DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


class DiagonalGaussianDistribution:
    """A normal distribution per latent value, from its stacked means and log variances (B, 2·channels, h, w).

    `deterministic` sets the deviation to zero: samples are the mean.
    """

    def __init__(self, parameters: torch.Tensor, deterministic: bool = False):
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        zero = torch.zeros_like(self.mean)
        self.std = zero if deterministic else torch.exp(0.5 * self.logvar)
        self.var = zero if deterministic else torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> torch.Tensor:
        """One draw, (B, channels, h, w); `generator` is one or a list with one per image."""
        like = self.parameters
        noise = randn_tensor(self.mean.shape, generator=generator, device=like.device, dtype=like.dtype)
        return self.mean + self.std * noise

    def mode(self) -> torch.Tensor:
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> torch.Tensor:
        """KL divergence from `other`, or from the standard normal, summed over each image: (B,)."""
        if self.deterministic:
            return torch.zeros(len(self.mean), device=self.mean.device)
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            terms = ((self.mean - other.mean) ** 2 + self.var) / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: torch.Tensor, dims: Sequence[int] = (1, 2, 3)) -> torch.Tensor:
        """Negative log-likelihood of `sample` (B, channels, h, w), summed over `dims`."""
        if self.deterministic:
            return torch.zeros(len(self.mean), device=self.mean.device)
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * terms.sum(dim=tuple(dims))


@dataclass
class AutoencoderKLOutput(Output):
    """The distribution of the latents, not yet multiplied by `scaling_factor`."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class DecoderOutput(Output):
    """The decoded images (B, channels, H, W), nominally in [-1, 1]."""

    sample: torch.Tensor


class Stage(nn.Module):
    """Residual blocks, each followed by attention while there is one left, then at most one change of resolution."""

    def __init__(
        self,
        channels: Sequence[int],  # of the input and of each residual block's output
        attentions: int,
        groups: int,
        act_fn: str,
        down: bool = False,
        up: bool = False,
    ):
        super().__init__()
        width = channels[-1]
        norm: dict[str, Any] = {"eps": _EPS, "non_linearity": act_fn, "groups": groups}
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=before, out_channels=after, temb_channels=None, **norm)
            for before, after in itertools.pairwise(channels)
        )
        self.attentions = nn.ModuleList(
            Attention(
                width,
                heads=1,
                dim_head=width,
                eps=_EPS,
                norm_num_groups=groups,
                residual_connection=True,
                bias=True,
                upcast_softmax=True,
            )
            for _ in range(attentions)
        )
        # Padding 0 stands for one row and column at the far sides only, as the originals were trained.
        downsample = [Downsample2D(width, use_conv=True, out_channels=width, padding=0, name="op")] if down else []
        upsample = [Upsample2D(width, use_conv=True, out_channels=width)] if up else []
        self.downsamplers, self.upsamplers = nn.ModuleList(downsample), nn.ModuleList(upsample)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, None)
            if i < len(self.attentions):
                x = self.attentions[i](x)
        for sampler in (*self.downsamplers, *self.upsamplers):
            x = sampler(x)
        return x


class Coder(nn.Module):
    """What encoder and decoder share: a convolution, stages with the middle at the lowest resolution, a convolution.

    `widths` and `attentions` are in the order in which the stages run.
    """

    _direction: ClassVar[str]  # "down" or "up"
    _lowest: ClassVar[int]  # the index of the stage with the lowest resolution
    down_blocks: nn.ModuleList
    up_blocks: nn.ModuleList

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        attentions: Sequence[bool],
        *,
        layers: int,
        mid_attention: bool,
        groups: int,
        act_fn: str,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        stages = nn.ModuleList()
        for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            change = {self._direction: i < len(widths) - 1}
            stages.append(Stage([before, *[width] * layers], layers * attentions[i], groups, act_fn, **change))
        self.add_module(f"{self._direction}_blocks", stages)
        self.mid_block = Stage([widths[self._lowest]] * 3, int(mid_attention), groups, act_fn)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def _blocks(self) -> list[nn.Module]:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self._blocks():
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class Encoder(Coder):
    """Images (B, in_channels, H, W) -> (B, out_channels, H/f, W/f), f = 2 to the number of stages less one."""

    _direction = "down"
    _lowest = -1

    def _blocks(self) -> list[nn.Module]:
        return [*self.down_blocks, self.mid_block]


class Decoder(Coder):
    """Latents (B, in_channels, h, w) -> images (B, out_channels, h·f, w·f)."""

    _direction = "up"
    _lowest = 0

    def _blocks(self) -> list[nn.Module]:
        return [self.mid_block, *self.up_blocks]


class AutoencoderKL(ModelMixin, AttentionSeam):
    """The variational autoencoder of latent diffusion: images in [-1, 1] (B, 3, H, W) <-> latents (B, 4, H/8, W/8).

    Pipelines multiply latents by `scaling_factor` (after subtracting `shift_factor` or standardising with
    `latents_mean` and `latents_std`, where given); `encode` and `decode` do not. `force_upcast` says that it overflows
    in float16. Slicing (one image at a time) and tiling (overlapping tiles, blended) save memory; the tile sizes are
    the attributes `tile_sample_min_size` (pixels), `tile_latent_min_size` and `tile_overlap_factor`. Raises
    `ConfigError` for block types that do not exist or do not match `block_out_channels`.
    """

    _old_keys = OLD_ATTENTION_KEYS

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ):
        super().__init__()
        widths = list(block_out_channels)
        down = _attentions("down_block_types", down_block_types, _DOWN_BLOCKS, widths)
        up = _attentions("up_block_types", up_block_types, _UP_BLOCKS, widths)
        if any(width % norm_num_groups for width in widths):
            raise ConfigError(f"block_out_channels {widths} are not all divisible by norm_num_groups {norm_num_groups}")
        options: dict[str, Any] = {
            "mid_attention": mid_block_add_attention,
            "groups": norm_num_groups,
            "act_fn": act_fn,
        }
        moments = 2 * latent_channels
        self.encoder = Encoder(in_channels, moments, widths, down, layers=layers_per_block, **options)
        self.decoder = Decoder(latent_channels, out_channels, widths[::-1], up, layers=layers_per_block + 1, **options)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None

        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_min_size = sample_size if isinstance(sample_size, int) else sample_size[0]
        self.tile_latent_min_size = self.tile_sample_min_size // self._factor
        self.tile_overlap_factor = 0.25

    @classmethod
    def _overflows_in_float16(cls, config: Mapping[str, Any]) -> bool:
        return bool(config.get("force_upcast", True))

    @property
    def _factor(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def enable_slicing(self) -> None:
        """Encode and decode one image of a batch at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def enable_tiling(self) -> None:
        """Encode and decode in overlapping tiles: memory no longer grows with the image, results differ slightly."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        self.use_tiling = False

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """The distribution of the latents of images (B, in_channels, H, W) in [-1, 1].

        Returns `AutoencoderKLOutput`, or a tuple. Raises `InputError` for another number of channels or an image that
        is smaller than one latent.
        """
        self._check("image", x, self.config.in_channels, self._factor)
        distribution = DiagonalGaussianDistribution(self._one_by_one(self._encode, x))
        return AutoencoderKLOutput(distribution) if return_dict else (distribution,)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """The images (B, out_channels, H, W) of latents (B, latent_channels, h, w) that are no longer scaled.

        Returns `DecoderOutput`, or a tuple. `generator` is accepted because other autoencoders need it.
        """
        self._check("latent", z, self.config.latent_channels, 1)
        sample = self._one_by_one(self._decode, z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Encode images, take the mean (or, with `sample_posterior`, a draw) and decode it."""
        distribution = self.encode(sample).latent_dist
        return self.decode(distribution.sample(generator) if sample_posterior else distribution.mode(), return_dict)

    def _check(self, what: str, x: Any, channels: int, smallest: int) -> None:
        if not isinstance(x, torch.Tensor) or x.ndim != 4 or x.shape[1] != channels or min(x.shape[2:]) < smallest:
            shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise InputError(
                f"the {what} batch has the shape {shape}; (batch, {channels}, height, width) is needed, "
                f"with height and width of at least {smallest}"
            )

    def _one_by_one(self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        if self.use_slicing and len(x) > 1:
            return torch.cat([run(one) for one in x.split(1)])
        return run(x)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        def run(part: torch.Tensor) -> torch.Tensor:
            moments = self.encoder(part)
            return moments if self.quant_conv is None else self.quant_conv(moments)

        return self._tiled(run, x, self.tile_sample_min_size, self.tile_latent_min_size, self._factor)

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        def run(part: torch.Tensor) -> torch.Tensor:
            return self.decoder(part if self.post_quant_conv is None else self.post_quant_conv(part))

        return self._tiled(run, z, self.tile_latent_min_size, self.tile_sample_min_size)

    def _tiled(
        self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, size: int, size_out: int, smallest: int = 1
    ) -> torch.Tensor:
        """`run(x)`, in tiles of `size` (which come out as `size_out`) where tiling is on and `x` is larger than one."""
        if not self.use_tiling or max(x.shape[2:]) <= size:
            return run(x)
        step, overlap = int(size * (1 - self.tile_overlap_factor)), int(size_out * self.tile_overlap_factor)
        if step < 1 or any((length - 1) % step + 1 < smallest for length in x.shape[2:]):
            raise InputError(
                f"{tuple(x.shape[2:])} has no tiles of {size} that overlap by a share of {self.tile_overlap_factor}: "
                f"the last would be thinner than {smallest}; set tile_sample_min_size and tile_latent_min_size to "
                f"larger values, such that the steps between tiles are multiples of {self._factor} pixels"
            )
        keep = size_out - overlap
        above: list[torch.Tensor] = []
        rows = []
        for top in range(0, x.shape[2], step):
            row: list[torch.Tensor] = []
            for column, left in enumerate(range(0, x.shape[3], step)):
                tile = run(x[:, :, top : top + size, left : left + size])
                if above:
                    tile = _blend(above[column], tile, overlap, dim=2)
                if row:
                    tile = _blend(row[-1], tile, overlap, dim=3)
                row.append(tile)
            rows.append(torch.cat([tile[:, :, :keep, :keep] for tile in row], dim=3))
            above = row
        return torch.cat(rows, dim=2)


def _blend(before: torch.Tensor, tile: torch.Tensor, overlap: int, dim: int) -> torch.Tensor:
    """`tile`, its first `overlap` rows (dim 2) or columns (dim 3) faded in over the last ones of `before`."""
    overlap = min(before.shape[dim], tile.shape[dim], overlap)
    shape = [-1 if axis == dim else 1 for axis in range(tile.ndim)]
    share = (torch.arange(overlap, dtype=torch.float64) / max(overlap, 1)).view(shape)
    old, new = ((1 - share).to(tile), share.to(tile))
    start, rest = tile.split([overlap, tile.shape[dim] - overlap], dim)
    end = before.narrow(dim, before.shape[dim] - overlap, overlap)
    return torch.cat([end * old + start * new, rest], dim)


def _attentions(name: str, types: Sequence[str], known: dict[str, bool], widths: Sequence[int]) -> list[bool]:
    if len(types) != len(widths):
        raise ConfigError(f"{name} has {len(types)} entries, but block_out_channels has {len(widths)}")
    for kind in types:
        check_choice(name, kind, known)
    return [known[kind] for kind in types]
