"""The U-Net of latent diffusion: latents, a time and text in (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..configuration import register_to_config
from ..errors import ConfigError, InputError, check_choice, nearest
from ..nn.activations import activation
from ..nn.attention import OLD_ATTENTION_KEYS, AttentionSeam
from ..nn.blocks import (
    MID_KINDS,
    MidStage,
    StageOptions,
    UpStage,
    check_levels,
    down_stages,
    kind_of,
    run_down,
    run_up,
    up_stages,
)
from ..nn.embeddings import (
    GaussianFourierProjection,
    TextTimeEmbedding,
    TimestepEmbedding,
    Timesteps,
    batch_of_times,
    check_class_labels,
)
from ..nn.grounding import GLIGENTextBoundingboxProjection
from ..nn.resnet import group_norm
from ..nn.transformer import Context
from ..outputs import Output
from .base import ModelMixin

_MASKED = -10000.0  # added to the scores of what a mask leaves out; finite in half precision


@dataclass
class UNet2DConditionOutput(Output):
    """`sample`: (B, out_channels, H, W)."""

    sample: torch.Tensor


def _per_level(argument: str, value: Any, levels: int) -> list[Any]:
    """One value for all levels, or one for each; raises `ConfigError` for another number of them."""
    if not isinstance(value, (list, tuple)):
        return [value] * levels
    if len(value) != levels:
        raise ConfigError(f"{argument} is {value!r}: {len(value)} values for {levels} levels of block_out_channels")
    return list(value)


def _required(argument: str, value: Any, reason: str) -> Any:
    if value is None:
        raise ConfigError(f"{argument} is None, but {reason} needs it")
    return value


class UNet2DConditionModel(ModelMixin, AttentionSeam):
    """Predict noise, v or the clean latents from noisy latents, their time (mostly in [0, 1000]) and text.

    What is per level goes from the highest resolution to the lowest, each level but the last halving it; one number
    stands for all. `attention_head_dim` is, against its name and as in all files, the *number* of heads of transformers
    (the width of a head elsewhere); `num_attention_heads`, if given, is that number instead. On top of the time go
    classes (`class_embed_type`: numbers (None), "timestep", "identity", "projection", "simple_projection"), text
    (`addition_embed_type` "text"), pooled text with sizes ("text_time") and a guidance scale (`time_cond_proj_dim`).
    Raises `ConfigError` for values that do not exist or do not fit together.
    """

    _old_keys = OLD_ATTENTION_KEYS

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1,
        reverse_transformer_layers_per_block: tuple[tuple[int, ...], ...] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
    ):
        super().__init__()
        self.sample_size = sample_size
        widths = tuple(block_out_channels)
        check_levels(widths, down_block_types, up_block_types, lambda kind: kind.resample != "skip")
        check_choice("attention_type", attention_type, ("default", "gated", "gated-text-image"))
        if dual_cross_attention:
            raise ConfigError(
                "dual_cross_attention is True, but only models that attend to one text at a time are known"
            )
        context = _per_level("cross_attention_dim", cross_attention_dim, len(widths))

        self.conv_in = nn.Conv2d(in_channels, widths[0], conv_in_kernel, padding=(conv_in_kernel - 1) // 2)
        temb = self._build_time(widths[0])
        self._build_encoder_projection(context)
        self._build_additions(temb, context)
        self.time_embed_act = None
        if time_embedding_act_fn is not None:
            self.time_embed_act = activation(time_embedding_act_fn, "time_embedding_act_fn")
        self._build_stages(widths, temb * (2 if class_embeddings_concat else 1), context)
        self.conv_norm_out = group_norm(norm_num_groups, widths[0], norm_eps)
        self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(widths[0], out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)
        self.position_net: GLIGENTextBoundingboxProjection | None = None
        if attention_type != "default":
            images = attention_type == "gated-text-image"
            self.position_net = GLIGENTextBoundingboxProjection(context[0], context[0], with_images=images)

    def _build_time(self, width: int) -> int:
        """The embedding of the time; returns its width."""
        config = self.config
        check_choice("time_embedding_type", config.time_embedding_type, ("positional", "fourier"))
        if config.time_embedding_type == "fourier":
            temb = config.time_embedding_dim or 2 * width
            if temb % 2:
                raise ConfigError(
                    f'time_embedding_dim is {temb}, but time_embedding_type "fourier" needs an even number'
                )
            flip, time_width = config.flip_sin_to_cos, temb
            self.time_proj: nn.Module = GaussianFourierProjection(temb // 2, log=False, flip_sin_to_cos=flip)
        else:
            temb, time_width = config.time_embedding_dim or 4 * width, width
            self.time_proj = Timesteps(width, config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = TimestepEmbedding(
            time_width,
            temb,
            act_fn=config.act_fn,
            post_act_fn=config.timestep_post_act,
            cond_proj_dim=config.time_cond_proj_dim,
        )
        self.class_embedding = self._class_embedding(time_width, temb)
        return temb

    def _class_embedding(self, time_width: int, temb: int) -> nn.Module | None:
        config, kind = self.config, self.config.class_embed_type
        if kind is None:
            return None if config.num_class_embeds is None else nn.Embedding(config.num_class_embeds, temb)
        check_choice("class_embed_type", kind, ("timestep", "identity", "projection", "simple_projection"))
        if kind == "timestep":
            return TimestepEmbedding(time_width, temb, act_fn=config.act_fn)
        if kind == "identity":
            return nn.Identity()
        argument = "projection_class_embeddings_input_dim"
        width = _required(argument, config[argument], f'class_embed_type "{kind}"')
        return TimestepEmbedding(width, temb) if kind == "projection" else nn.Linear(width, temb)

    def _build_encoder_projection(self, context: Sequence[int]) -> None:
        """The projection of text states to the width that attention takes."""
        kind, width = self.config.encoder_hid_dim_type, self.config.encoder_hid_dim
        if kind is None and width is not None:
            kind = "text_proj"
            self.register_to_config(encoder_hid_dim_type=kind)
        self.encoder_hid_proj: nn.Linear | None = None
        if kind is not None:
            check_choice("encoder_hid_dim_type", kind, ("text_proj",))
            width = _required("encoder_hid_dim", width, f'encoder_hid_dim_type "{kind}"')
            self.encoder_hid_proj = nn.Linear(width, context[0])

    def _build_additions(self, temb: int, context: Sequence[int]) -> None:
        """The embeddings of what is added to the time besides classes."""
        config, kind = self.config, self.config.addition_embed_type
        self.add_embedding: nn.Module | None = None
        if kind is None:
            return
        check_choice("addition_embed_type", kind, ("text", "text_time"))
        if config.class_embeddings_concat:
            raise ConfigError(f'class_embeddings_concat leaves no room for addition_embed_type "{kind}"')
        if kind == "text":
            width = config.encoder_hid_dim or context[0]
            self.add_embedding = TextTimeEmbedding(width, temb, config.addition_embed_type_num_heads)
        else:
            needed = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
            numbers, width = (_required(name, config[name], f'addition_embed_type "{kind}"') for name in needed)
            self.add_time_proj = Timesteps(numbers, config.flip_sin_to_cos, config.freq_shift)
            self.add_embedding = TimestepEmbedding(width, temb)

    def _build_stages(self, widths: Sequence[int], temb: int, context: Sequence[int]) -> None:
        config, count = self.config, len(widths)
        level = {
            name: _per_level(name, config[name], count)
            for name in (
                "layers_per_block",
                "attention_head_dim",
                "only_cross_attention",
                "transformer_layers_per_block",
            )
        }
        head_dims = [dim or width for dim, width in zip(level["attention_head_dim"], widths, strict=True)]
        heads = level["attention_head_dim"]
        if config.num_attention_heads is not None:
            heads = _per_level("num_attention_heads", config.num_attention_heads, count)
        only_text, depths = level["only_cross_attention"], level["transformer_layers_per_block"]
        depths_up = depths[::-1]
        if config.reverse_transformer_layers_per_block is not None:
            name = "reverse_transformer_layers_per_block"
            depths_up = _per_level(name, config[name], count)
        elif any(not isinstance(depth, int) for depth in depths):
            raise ConfigError(
                "reverse_transformer_layers_per_block must say what stages of unequal layers have on the way up"
            )

        shared = StageOptions(
            temb,
            config.norm_eps,
            config.act_fn,
            config.norm_num_groups,
            dropout=config.dropout,
            time_scale_shift=config.resnet_time_scale_shift,
            skip_time_act=config.resnet_skip_time_act,
            out_scale_factor=config.resnet_out_scale_factor,
            downsample_padding=config.downsample_padding,
            attention_groups=config.norm_num_groups,
            cross_attention_norm=config.cross_attention_norm,
            use_linear_projection=config.use_linear_projection,
            upcast_attention=config.upcast_attention,
            gated=config.attention_type != "default",
        )

        def options(i: int, j: int, depth: int | Sequence[int]) -> StageOptions:
            """Those of level i; j is where its `attention_head_dim` stands if that is the width of a head."""
            return replace(
                shared,
                heads=heads[i],
                head_dim=head_dims[j],
                only_cross_attention=only_text[i],
                cross_attention_dim=context[i],
                transformer_layers=depth,
            )

        layers = level["layers_per_block"]
        downs = [options(i, i, depths[i]) for i in range(count)]
        # On the way up the widths of heads are read in the order of the way down: a quirk that trained models rely on.
        ups = [options(count - 1 - i, i, depths_up[i]) for i in range(count)]
        self.down_blocks = down_stages(config.down_block_types, widths, layers, downs)
        self.mid_block = self._mid_stage(options(count - 1, count - 1, depths[-1]), widths[-1])
        self.up_blocks = up_stages(config.up_block_types, widths, layers, ups)
        stages = [*self.down_blocks, *self.up_blocks, *filter(None, [self.mid_block])]
        self.cross_attends = any(stage.has_cross_attention for stage in stages)

    def _mid_stage(self, options: StageOptions, width: int) -> MidStage | None:
        config, name = self.config, self.config.mid_block_type
        if name is None:
            return None
        kind = kind_of("mid_block_type", name, MID_KINDS)
        only_text = config.mid_block_only_cross_attention
        if only_text is None:
            only_text = config.only_cross_attention is True
        # The transformer in the middle always has its self-attention.
        only_text = only_text and kind.attention == "added"
        scale = config.mid_block_scale_factor
        options = replace(options, only_cross_attention=only_text, out_scale_factor=scale)
        return MidStage(kind, options, width, layers=0 if kind.attention == "spatial" else 1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """sample (B, in_channels, H, W), timestep a number or (B,), text (B, tokens, D) -> (B, out_channels, H, W).

        Any H and W will do. Masks are 1 to keep and 0 to leave out: `attention_mask` (B, positions) of self-attention,
        `encoder_attention_mask` (B, tokens). `timestep_cond` (B, time_cond_proj_dim). `added_cond_kwargs` for
        "text_time": `text_embeds` (B, E) and `time_ids` (B, numbers). `cross_attention_kwargs` go to the attention
        processors. The residuals are those of a ControlNet (`down_block_…`, one for all that is kept on the way down,
        and `mid_block_…`) and of a T2I adapter (`down_intrablock_…`, one per level). Raises `InputError` for what does
        not fit.
        """
        self._check(sample, encoder_hidden_states, attention_mask, encoder_attention_mask)
        check_class_labels(self.class_embedding, class_labels, len(sample))
        if self._config["center_input_sample"]:
            sample = 2 * sample - 1.0
        emb = self._embed(sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added_cond_kwargs or {})
        if self.encoder_hid_proj is not None:
            encoder_hidden_states = self.encoder_hid_proj(encoder_hidden_states)
        context = Context(
            encoder_hidden_states,
            _as_bias(attention_mask, sample.dtype),
            _as_bias(encoder_attention_mask, sample.dtype),
            self._processor_arguments(cross_attention_kwargs or {}),
        )

        adapter = list(down_intrablock_additional_residuals or ())
        levels = len(self.down_blocks)
        x, kept = run_down(self.down_blocks, self.conv_in(sample), emb, context, adapter[:levels])
        kept = _controlled(kept, down_block_additional_residuals, mid_block_additional_residual)
        if self.mid_block is not None:
            x = self.mid_block(x, emb, context)
            if len(adapter) > levels and adapter[levels].shape == x.shape:
                x = x + adapter[levels]
        if mid_block_additional_residual is not None:
            x = x + mid_block_additional_residual
        x, _ = run_up(self.up_blocks, x, kept, emb, context)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return UNet2DConditionOutput(x) if return_dict else (x,)

    def _embed(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        text: torch.Tensor,
        class_labels: torch.Tensor | None,
        timestep_cond: torch.Tensor | None,
        added: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """What the residual blocks get: the time, with classes and additions."""
        times = batch_of_times(timestep, sample)
        emb = self.time_embedding(self.time_proj(times).to(sample.dtype), timestep_cond)
        if self.class_embedding is not None:
            if self._config["class_embed_type"] == "timestep":
                class_labels = self.time_proj(class_labels).to(sample.dtype)
            classes = self.class_embedding(class_labels).to(sample.dtype)
            emb = torch.cat([emb, classes], dim=-1) if self._config["class_embeddings_concat"] else emb + classes
        kind = self._config["addition_embed_type"]
        needed = ("text_embeds", "time_ids") if kind == "text_time" else ()
        for name in (*needed, *added):
            if name not in needed:
                raise InputError(
                    f"added_cond_kwargs has {name!r}, which this model does not take; {nearest(name, needed)}"
                )
            if added.get(name) is None:
                raise InputError(f'added_cond_kwargs lacks {name!r}, which addition_embed_type "{kind}" needs')
        if kind == "text":
            emb = emb + self.add_embedding(text)  # type: ignore[misc]
        elif kind == "text_time":
            emb = emb + self._embed_sizes(added["text_embeds"], added["time_ids"], emb)
        return emb if self.time_embed_act is None else self.time_embed_act(emb)

    def _embed_sizes(self, text_embeds: torch.Tensor, time_ids: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Pooled text and numbers (sizes, crops, a score) (Podell et al. 2023, arXiv:2307.01952, section 2.2)."""
        rows, each = len(text_embeds), self._config["addition_time_embed_dim"]
        wanted = self._config["projection_class_embeddings_input_dim"]
        width, given = text_embeds.shape[-1], time_ids.numel() // rows
        if rows not in (1, len(emb)) or len(time_ids) != rows or width + given * each != wanted:
            raise InputError(
                f"added_cond_kwargs: text_embeds {tuple(text_embeds.shape)} and time_ids {tuple(time_ids.shape)} do "
                f"not fit a batch of {len(emb)}, or {width} + {given} · {each} is not {wanted}"
            )
        sizes = self.add_time_proj(time_ids.flatten()).reshape(rows, -1)
        return self.add_embedding(torch.cat([text_embeds, sizes], dim=-1).to(emb.dtype))  # type: ignore[misc]

    def _processor_arguments(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """`cross_attention_kwargs`, checked, with the boxes of GLIGEN embedded."""
        if self.position_net is None or "gligen" not in arguments:
            self.check_cross_attention_kwargs(arguments)
            return arguments
        others = {name: value for name, value in arguments.items() if name != "gligen"}
        self.check_cross_attention_kwargs(others)
        return {**others, "gligen": {"objs": self.position_net(**arguments["gligen"])}}

    def _check(
        self,
        sample: torch.Tensor,
        text: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
    ) -> None:
        channels = self._config["in_channels"]
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise InputError(f"sample has the shape {tuple(sample.shape)}, but (B, {channels}, H, W) is needed")
        batch = len(sample)
        if isinstance(text, torch.Tensor):
            width = self._config["encoder_hid_dim"] or self._config["cross_attention_dim"]
            if text.ndim != 3 or len(text) != batch or (isinstance(width, int) and text.shape[2] != width):
                shape = tuple(text.shape)
                raise InputError(
                    f"encoder_hidden_states has the shape {shape}, but ({batch}, tokens, {width}) is needed"
                )
        elif self.cross_attends and all(module.uses_default_processor for module in self._attentions().values()):
            # With processors of their own, researchers pass what these understand.
            raise InputError(
                f"encoder_hidden_states is a {type(text).__name__}, but a tensor (B, tokens, width) is needed"
            )
        for name, mask in (("attention_mask", attention_mask), ("encoder_attention_mask", encoder_attention_mask)):
            if mask is not None and (mask.ndim != 2 or len(mask) not in (1, batch)):
                raise InputError(f"{name} has the shape {tuple(mask.shape)}, but ({batch}, keys) is needed")
        if encoder_attention_mask is None or not isinstance(text, torch.Tensor):
            return
        tokens, keys = text.shape[1], encoder_attention_mask.shape[1]
        if tokens != keys:
            raise InputError(f"encoder_attention_mask is for {keys} tokens, but encoder_hidden_states has {tokens}")

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Weigh backbone (`b1`, `b2`) against skip connections (`s1`, `s2`) in the two stages of lowest resolution.

        Si et al. 2023, arXiv:2309.11497. Raises `InputError` unless all are positive.
        """
        if min(s1, s2, b1, b2) <= 0:
            raise InputError(f"FreeU's factors must be positive, not s1={s1}, s2={s2}, b1={b1}, b2={b2}")
        for stage, factors in zip(self.up_blocks, ((b1, s1), (b2, s2)), strict=False):
            if isinstance(stage, UpStage) and stage.kind.attention != "spatial":
                stage.freeu = factors

    def disable_freeu(self) -> None:
        for stage in self.up_blocks:
            stage.freeu = None  # type: ignore[assignment]


def _as_bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask (B, keys) of ones and zeros as (B, 1, keys) to be added to scores."""
    return None if mask is None else (1 - mask.to(dtype))[:, None] * _MASKED


def _controlled(
    kept: list[torch.Tensor], residuals: Sequence[torch.Tensor] | None, middle: torch.Tensor | None
) -> list[torch.Tensor]:
    """What is kept on the way down, with a ControlNet's residuals added."""
    if residuals is None and middle is None:
        return kept
    if residuals is None or middle is None:
        raise InputError(
            "down_block_additional_residuals and mid_block_additional_residual belong together; the residuals of a T2I "
            "adapter are down_intrablock_additional_residuals"
        )
    if len(residuals) != len(kept):
        raise InputError(f"down_block_additional_residuals has {len(residuals)} tensors, but {len(kept)} are needed")
    return [x + residual for x, residual in zip(kept, residuals, strict=True)]
