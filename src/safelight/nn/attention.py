"""Attention: one function, one module with the checkpoint's names, and the seam where researchers put their own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import ConfigError, InputError, check_choice, nearest
from .resnet import group_norm


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ · scale + mask) v for (B, heads, tokens, dim) (Vaswani et al. 2017, eq. 1); scale dim^−1/2."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, tokens, heads·dim) -> (B, heads, tokens, dim)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def as_feature_map(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, H·W, C) -> (B, C, H, W), shaped and laid out in memory as `like` is."""
    out = tokens.transpose(1, 2).unflatten(2, like.shape[2:])
    # Tokens are channels-last; in a model that is not, they would silently turn everything behind them into it.
    return out if like.is_contiguous(memory_format=torch.channels_last) else out.contiguous()


class AttnProcessor:
    """What an `Attention` does unless it is given another processor. It keeps nothing, so one serves all threads.

    The fused kernel adds up in float32 at any precision: `upcast_attention` and `upcast_softmax` have no effect here.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from (B, tokens, C) or (B, C, H, W) to `encoder_hidden_states` (B, keys, D), or to itself.

        `attention_mask` (B or B·heads, 1 or tokens, keys) is added to the scores.
        """
        x = attn.normed_tokens(hidden_states)
        k, v = self._keys_values(attn, hidden_states, x, encoder_hidden_states)
        q, k, v = (split_heads(y, attn.heads) for y in (attn.to_q(x), k, v))
        mask = self._mask(attn.per_head(attention_mask, len(x)), k.shape[2])
        return attn.finish(attention(q, k, v, mask, attn.scale), hidden_states)

    def _keys_values(
        self, attn: Attention, hidden_states: torch.Tensor, x: torch.Tensor, encoder_hidden_states: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        context = x if encoder_hidden_states is None else attn.normed_context(encoder_hidden_states)
        return attn.to_k(context), attn.to_v(context)

    def _mask(self, mask: torch.Tensor | None, keys: int) -> torch.Tensor | None:
        return mask


class AttnAddedKVProcessor(AttnProcessor):
    """Attention of pixels to text and to each other in one softmax (for `added_kv_proj_dim`).

    `encoder_hidden_states` are (B, keys, added_kv_proj_dim), and `attention_mask` is over those keys alone.
    """

    def _keys_values(
        self, attn: Attention, hidden_states: torch.Tensor, x: torch.Tensor, encoder_hidden_states: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        context = hidden_states.flatten(2).transpose(1, 2)
        if encoder_hidden_states is not None:
            context = attn.normed_context(encoder_hidden_states)
        keys, values = [attn.add_k_proj(context)], [attn.add_v_proj(context)]
        if not attn.only_cross_attention:
            keys.append(attn.to_k(x))
            values.append(attn.to_v(x))
        return torch.cat(keys, 1), torch.cat(values, 1)

    def _mask(self, mask: torch.Tensor | None, keys: int) -> torch.Tensor | None:
        return None if mask is None else F.pad(mask, (0, keys - mask.shape[-1]))


@functools.lru_cache(maxsize=256)
def _parameters(call: Callable[..., Any]) -> frozenset[str] | None:
    parameters = inspect.signature(call).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if takes_all else frozenset(parameters)


def takes(processor: Any, name: str) -> bool:
    """Whether the call of `processor` has a parameter `name`, or takes any."""
    kind = type(processor)
    if kind in (AttnProcessor, AttnAddedKVProcessor):
        return name == "temb"  # asked in every forward, where a compiler follows this and not the signature
    call = kind.forward if kind.__call__ is nn.Module.__call__ else kind.__call__
    known = _parameters(processor if inspect.isroutine(processor) else call)
    return known is None or name in known


class Attention(nn.Module):
    """Multi-head attention over tokens, or over the positions of a feature map.

    `query_dim` C, `cross_attention_dim` D (None: self-attention), `heads` of `dim_head`. With `norm_num_groups` a group
    norm comes first, and with `residual_connection` the input is added, as spatial self-attention wants. `processor`
    does the work: `processor(attn, hidden_states, encoder_hidden_states=…, attention_mask=…, **kwargs)`.
    """

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        bias: bool = False,
        upcast_attention: bool = False,
        upcast_softmax: bool = False,
        cross_attention_norm: str | None = None,
        cross_attention_norm_num_groups: int = 32,
        added_kv_proj_dim: int | None = None,
        norm_num_groups: int | None = None,
        out_bias: bool = True,
        scale_qk: bool = True,
        only_cross_attention: bool = False,
        eps: float = 1e-5,
        rescale_output_factor: float = 1.0,
        residual_connection: bool = False,
        processor: Any = None,
    ):
        super().__init__()
        if only_cross_attention and added_kv_proj_dim is None:
            raise ConfigError("only_cross_attention leaves no keys unless there is an added_kv_proj_dim")
        inner, context = heads * dim_head, query_dim if cross_attention_dim is None else cross_attention_dim
        self.heads, self.scale = heads, dim_head**-0.5 if scale_qk else 1.0
        self.query_dim, self.inner_dim, self.cross_attention_dim = query_dim, inner, context
        self.is_cross_attention = cross_attention_dim is not None
        self.upcast_attention, self.upcast_softmax = upcast_attention, upcast_softmax
        self.added_kv_proj_dim, self.only_cross_attention = added_kv_proj_dim, only_cross_attention
        # Attention to added keys is always a residual branch.
        self.residual_connection = residual_connection or added_kv_proj_dim is not None
        self.rescale_output_factor = rescale_output_factor
        self.group_norm = None if norm_num_groups is None else group_norm(norm_num_groups, query_dim, eps)
        # Processors written elsewhere ask for these.
        self.spatial_norm = self.norm_q = self.norm_k = None
        self.norm_cross: nn.Module | None = None
        width = context if added_kv_proj_dim is None else added_kv_proj_dim
        if cross_attention_norm == "layer_norm":
            self.norm_cross = nn.LayerNorm(context)
        elif cross_attention_norm == "group_norm":
            self.norm_cross = group_norm(
                cross_attention_norm_num_groups, width, 1e-5, "cross_attention_norm_num_groups"
            )
        elif cross_attention_norm is not None:
            check_choice("cross_attention_norm", cross_attention_norm, ("layer_norm", "group_norm"))
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k: Any = None if only_cross_attention else nn.Linear(context, inner, bias=bias)
        self.to_v: Any = None if only_cross_attention else nn.Linear(context, inner, bias=bias)
        self.add_k_proj: Any = None if added_kv_proj_dim is None else nn.Linear(added_kv_proj_dim, inner)
        self.add_v_proj: Any = None if added_kv_proj_dim is None else nn.Linear(added_kv_proj_dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim, bias=out_bias), nn.Dropout(dropout)])
        self.processor = processor or self.default_processor()

    @property
    def uses_default_processor(self) -> bool:
        return type(self.processor) in (AttnProcessor, AttnAddedKVProcessor)  # a subclass may do anything

    def default_processor(self) -> Any:
        return DEFAULT_PROCESSOR if self.added_kv_proj_dim is None else ADDED_KV_PROCESSOR

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> torch.Tensor:
        """Hand everything to the processor; of `cross_attention_kwargs`, what its signature names."""
        if cross_attention_kwargs:
            given = cross_attention_kwargs.items()
            cross_attention_kwargs = {name: value for name, value in given if takes(self.processor, name)}
        return self.processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **cross_attention_kwargs,
        )

    # The parts that the default processors are made of.
    def normed_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """(B, tokens, C) or (B, C, H, W) -> (B, tokens, C), behind the group norm if there is one."""
        if x.ndim == 4:
            return (x if self.group_norm is None else self.group_norm(x)).flatten(2).transpose(1, 2)
        return x if self.group_norm is None else self.group_norm(x.transpose(1, 2)).transpose(1, 2)

    def normed_context(self, context: torch.Tensor) -> torch.Tensor:
        return context if self.norm_cross is None else self.norm_encoder_hidden_states(context)

    def per_head(self, mask: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """A mask (B or B·heads, 1 or tokens, keys) as (B, 1 or heads, 1 or tokens, keys)."""
        if mask is None:
            return None
        return mask[:, None] if len(mask) <= batch else mask.unflatten(0, (batch, self.heads))

    def finish(self, out: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """(B, heads, tokens, dim) -> the shape of `residual`: projection, residual connection, rescaling."""
        out = self.to_out[1](self.to_out[0](out.transpose(1, 2).flatten(2)))
        if residual.ndim == 4:
            out = as_feature_map(out, residual)
        if self.residual_connection:
            out = out + residual
        return out if self.rescale_output_factor == 1.0 else out / self.rescale_output_factor

    # The parts that processors written elsewhere are made of.
    def get_processor(self) -> Any:
        return self.processor

    def set_processor(self, processor: Any) -> None:
        """Put `processor` in place; one that is a module brings its parameters with it, and takes them away again."""
        self._modules.pop("processor", None)
        self.processor = processor

    def head_to_batch_dim(self, tensor: torch.Tensor, out_dim: int = 3) -> torch.Tensor:
        """(B, tokens, heads·dim) -> (B·heads, tokens, dim), or (B, heads, tokens, dim) with `out_dim` 4."""
        split = split_heads(tensor.flatten(1, 2) if tensor.ndim == 4 else tensor, self.heads)
        return split.flatten(0, 1) if out_dim == 3 else split

    def batch_to_head_dim(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B·heads, tokens, dim) -> (B, tokens, heads·dim)."""
        return tensor.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def get_attention_scores(
        self, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """softmax(q kᵀ · scale + mask) for (B·heads, tokens, dim): probabilities (B·heads, tokens, keys)."""
        dtype = query.dtype
        if self.upcast_attention:
            query, key = query.float(), key.float()
        scores = torch.matmul(query * self.scale, key.transpose(-1, -2))
        if attention_mask is not None:
            scores = scores + attention_mask
        return (scores.float() if self.upcast_softmax else scores).softmax(dim=-1).to(dtype)

    def prepare_attention_mask(
        self, attention_mask: torch.Tensor | None, target_length: int, batch_size: int, out_dim: int = 3
    ) -> torch.Tensor | None:
        """An additive mask (B, 1 or tokens, keys), once for each head: (B·heads, …), or (B, heads, …) with `out_dim` 4.

        One that is not `target_length` long gets that many zeros behind it, for keys that come after the masked ones.
        """
        if attention_mask is None:
            return None
        if attention_mask.shape[-1] != target_length:
            attention_mask = F.pad(attention_mask, (0, target_length))
        if out_dim == 4:
            return attention_mask[:, None].repeat_interleave(self.heads, dim=1)
        if len(attention_mask) < batch_size * self.heads:
            return attention_mask.repeat_interleave(self.heads, dim=0)
        return attention_mask

    def norm_encoder_hidden_states(self, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, keys, D) behind `cross_attention_norm`."""
        if isinstance(self.norm_cross, nn.GroupNorm):
            return self.norm_cross(encoder_hidden_states.transpose(1, 2)).transpose(1, 2)
        if self.norm_cross is None:
            raise ConfigError("this attention was built without cross_attention_norm")
        return self.norm_cross(encoder_hidden_states)


DEFAULT_PROCESSOR, ADDED_KV_PROCESSOR = AttnProcessor(), AttnAddedKVProcessor()


# How older files spell the keys of spatial attention: (pattern, replacement).
OLD_ATTENTION_KEYS = tuple(
    (rf"(attentions\.\d+)\.{old}\.(weight|bias)$", rf"\1.{new}.\2")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)


class AttentionSeam:
    """For models: look at, and replace, what each `Attention` in them does."""

    def _attentions(self) -> dict[str, Attention]:
        modules = self.named_modules()  # type: ignore[attr-defined]
        return {f"{name}.processor": module for name, module in modules if isinstance(module, Attention)}

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Every attention's processor, by the name of the attention with `.processor` behind it."""
        return {name: module.processor for name, module in self._attentions().items()}

    def set_attn_processor(self, processor: Any | Mapping[str, Any]) -> None:
        """Give one processor to every attention, or each its own by a dict with the names of `attn_processors`.

        Raises `InputError`, and changes nothing, if the dict's names are not exactly those.
        """
        attentions = self._attentions()
        wanted = processor if isinstance(processor, Mapping) else dict.fromkeys(attentions, processor)
        for name in (*wanted, *attentions):
            if name not in attentions:
                raise InputError(f"there is no attention {name!r}; {nearest(name, attentions)}")
            if name not in wanted:
                raise InputError(f"no processor was given for {name!r}: {len(wanted)} for {len(attentions)} attentions")
        for name, module in attentions.items():
            module.set_processor(wanted[name])

    def set_default_attn_processor(self) -> None:
        for module in self._attentions().values():
            module.set_processor(module.default_processor())

    def set_attention_slice(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Accepted for scripts' sake: the fused kernel never holds the matrix of scores that slices would cut up."""
        sizes = slice_size if isinstance(slice_size, list) else [slice_size]
        if not all(size in ("auto", "max", None) or (isinstance(size, int) and size > 0) for size in sizes):
            raise InputError(f'slice_size is {slice_size!r}, but "auto", "max", a positive number or None is needed')

    def check_cross_attention_kwargs(self, arguments: Mapping[str, Any] | None) -> None:
        """Raise `InputError` for one of `cross_attention_kwargs` that no processor of the model takes.

        `scale`, the strength of adapters, may always stand there.
        """
        processors = self.attn_processors.values() if arguments else ()
        for name in arguments or ():
            if name != "scale" and not any(takes(processor, name) for processor in processors):
                kinds = sorted({type(processor).__name__ for processor in processors})
                raise InputError(
                    f"cross_attention_kwargs has {name!r}, which no processor takes; they are {', '.join(kinds)}"
                )
