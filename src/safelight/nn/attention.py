"""Attention: one function, one module with the checkpoint's names, and the seam where researchers put their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError, check_choice


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ · scale + mask) v (Vaswani et al. 2017, eq. 1) for (B, heads, tokens, dim); `scale` is dim^−1/2 if None."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class AttnProcessor:
    """What an `Attention` does unless it is given another processor; it keeps nothing, so one serves all."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from `hidden_states`, (B, tokens, C) or (B, C, H, W), to `encoder_hidden_states` (B, tokens, D) or itself."""
        residual, shape = hidden_states, hidden_states.shape
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q = attn.split_heads(attn.to_q(hidden_states))
        k, v = attn.split_heads(attn.to_k(context)), attn.split_heads(attn.to_v(context))
        if attention_mask is not None:
            rows, target = len(hidden_states), k.shape[2]
            attention_mask = attn.prepare_attention_mask(attention_mask, target, rows)
            attention_mask = attention_mask.view(rows, attn.heads, -1, attention_mask.shape[-1])
        if attn.upcast_attention and q.dtype != torch.float32:
            q, k = q.float(), k.float()
        out = attention(q, k, v.to(q.dtype), attention_mask, attn.scale).to(hidden_states.dtype)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out if attn.rescale_output_factor == 1.0 else out / attn.rescale_output_factor


class Attention(nn.Module):
    """Multi-head attention over tokens or over the positions of a feature map.

    `query_dim` C, `cross_attention_dim` D (None: self-attention), `heads` of `dim_head`. With `norm_num_groups` a group norm
    comes first and with `residual_connection` the input is added, as spatial self-attention wants. The computation is in
    `processor`, called as `processor(attn, hidden_states, encoder_hidden_states=…, attention_mask=…, temb=…, **kwargs)`.
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
        norm_num_groups: int | None = None,
        out_bias: bool = True,
        scale_qk: bool = True,
        eps: float = 1e-5,
        rescale_output_factor: float = 1.0,
        residual_connection: bool = False,
        processor: Any = None,
    ):
        super().__init__()
        inner, context = heads * dim_head, cross_attention_dim or query_dim
        self.heads, self.scale = heads, dim_head**-0.5 if scale_qk else 1.0
        self.query_dim, self.inner_dim, self.cross_attention_dim = query_dim, inner, context
        self.is_cross_attention = cross_attention_dim is not None
        self.upcast_attention, self.upcast_softmax = upcast_attention, upcast_softmax
        self.residual_connection, self.rescale_output_factor = residual_connection, rescale_output_factor
        self.group_norm = nn.GroupNorm(norm_num_groups, query_dim, eps) if norm_num_groups else None
        self.spatial_norm: nn.Module | None = None
        check_choice("cross_attention_norm", cross_attention_norm, (None, "layer_norm", "group_norm"))
        self.norm_cross: nn.Module | None = None
        if cross_attention_norm == "layer_norm":
            self.norm_cross = nn.LayerNorm(context)
        elif cross_attention_norm == "group_norm":
            self.norm_cross = nn.GroupNorm(cross_attention_norm_num_groups, context, eps=1e-5)
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k = nn.Linear(context, inner, bias=bias)
        self.to_v = nn.Linear(context, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim, bias=out_bias), nn.Dropout(dropout)])
        self.processor = processor or DEFAULT_PROCESSOR

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> torch.Tensor:
        return self.processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **cross_attention_kwargs,
        )

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, tokens, heads·dim) -> (B, heads, tokens, dim)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    # What processors written elsewhere call.
    def get_processor(self) -> Any:
        return self.processor

    def set_processor(self, processor: Any) -> None:
        self.processor = processor

    def head_to_batch_dim(self, x: torch.Tensor, out_dim: int = 3) -> torch.Tensor:
        """(B, tokens, heads·dim) -> (B·heads, tokens, dim), or (B, heads, tokens, dim) with `out_dim` 4."""
        split = self.split_heads(x)
        return split.flatten(0, 1) if out_dim == 3 else split

    def batch_to_head_dim(self, x: torch.Tensor) -> torch.Tensor:
        """(B·heads, tokens, dim) -> (B, tokens, heads·dim)."""
        return x.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def get_attention_scores(
        self, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """softmax(q kᵀ · scale + mask) for (B·heads, tokens, dim): (B·heads, tokens, keys)."""
        dtype = query.dtype
        if self.upcast_attention:
            query, key = query.float(), key.float()
        scores = torch.matmul(query, key.transpose(-1, -2)) * self.scale
        if attention_mask is not None:
            scores = scores + attention_mask
        return (scores.float() if self.upcast_softmax else scores).softmax(dim=-1).to(dtype)

    def prepare_attention_mask(
        self, attention_mask: torch.Tensor | None, target_length: int, batch_size: int, out_dim: int = 3
    ) -> torch.Tensor | None:
        """An additive mask (B, 1 or tokens, keys) repeated for each head: (B·heads, …), or (B, heads, …) with `out_dim` 4."""
        if attention_mask is None:
            return None
        if attention_mask.shape[-1] != target_length:
            attention_mask = F.pad(attention_mask, (0, target_length))
        if out_dim == 4:
            return attention_mask.unsqueeze(1).repeat_interleave(self.heads, dim=1)
        if attention_mask.shape[0] < batch_size * self.heads:
            attention_mask = attention_mask.repeat_interleave(self.heads, dim=0)
        return attention_mask

    def norm_encoder_hidden_states(self, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        if isinstance(self.norm_cross, nn.GroupNorm):
            return self.norm_cross(encoder_hidden_states.transpose(1, 2)).transpose(1, 2)
        assert self.norm_cross is not None
        return self.norm_cross(encoder_hidden_states)


DEFAULT_PROCESSOR = AttnProcessor()
AttnProcessor2_0 = AttnProcessor


class AttentionSeam:
    """For models: look at, and replace, what each `Attention` in them does."""

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Every attention's processor, by its module's name with `.processor` behind it."""
        modules = self.named_modules()  # type: ignore[attr-defined]
        return {f"{name}.processor": module.processor for name, module in modules if isinstance(module, Attention)}

    def set_attn_processor(self, processor: Any) -> None:
        """Give one processor to every attention, or a dict as `attn_processors` has it; raises `InputError` if names differ."""
        current = self.attn_processors
        wanted = processor if isinstance(processor, dict) else dict.fromkeys(current, processor)
        if set(wanted) != set(current):
            odd = sorted(set(wanted) ^ set(current))
            raise InputError(f"the processors given do not match the {len(current)} attentions of the model: {odd[:5]}")
        for name, one in wanted.items():
            self.get_submodule(name.removesuffix(".processor")).processor = one  # type: ignore[attr-defined]

    def set_default_attn_processor(self) -> None:
        self.set_attn_processor(DEFAULT_PROCESSOR)

    def set_attention_slice(self, slice_size: Any = "auto") -> None:
        """Accepted for scripts' sake: fused attention never holds the matrix that slicing would save."""
