"""Transformers over the positions of a feature map, attending to text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import Attention, as_feature_map
from .resnet import group_norm


@dataclass(frozen=True)
class Context:
    """What attention looks at besides the feature map, the same throughout one forward.

    The masks are added to the scores: (B, 1, keys), 0 to keep and -10000 to leave out. `arguments` are for processors.
    """

    encoder_hidden_states: torch.Tensor | None = None  # (B, tokens, cross_attention_dim)
    attention_mask: torch.Tensor | None = None  # of self-attention
    encoder_attention_mask: torch.Tensor | None = None  # of attention to encoder_hidden_states
    arguments: Mapping[str, Any] = field(default_factory=dict)


def run(module: nn.Module, *args: Any, checkpointing: bool) -> Any:
    """`module(*args)`, keeping no intermediate results for the backward pass if `checkpointing`."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False)
    return module(*args)


class GEGLU(nn.Module):
    """A linear layer, half of whose outputs gates the other half through GELU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, mult * dim), nn.Dropout(dropout), nn.Linear(mult * dim, dim)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class GatedSelfAttentionDense(nn.Module):
    """Attention to grounded objects behind gates that start closed (Li et al. 2023, arXiv:2301.07093, eq. 8)."""

    def __init__(self, query_dim: int, context_dim: int, heads: int, dim_head: int):
        super().__init__()
        self.linear = nn.Linear(context_dim, query_dim)
        self.attn = Attention(query_dim, heads=heads, dim_head=dim_head)
        self.ff = FeedForward(query_dim)
        self.norm1, self.norm2 = nn.LayerNorm(query_dim), nn.LayerNorm(query_dim)
        self.alpha_attn = nn.Parameter(torch.tensor(0.0))
        self.alpha_dense = nn.Parameter(torch.tensor(0.0))
        self.enabled = True  # pipelines switch the grounding off for the late steps

    def forward(self, x: torch.Tensor, objs: torch.Tensor) -> torch.Tensor:
        if not self.enabled:
            return x
        both = torch.cat([x, self.linear(objs)], dim=1)
        x = x + self.alpha_attn.tanh() * self.attn(self.norm1(both))[:, : x.shape[1]]
        return x + self.alpha_dense.tanh() * self.ff(self.norm2(x))


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to text, feed-forward, each behind a layer norm and added to its input.

    `only_cross_attention`: the first attention looks at the text, too. `gated`: with attention to grounded objects.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        cross_attention_dim: int,
        dropout: float = 0.0,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
        gated: bool = False,
    ):
        super().__init__()
        heads: dict[str, Any] = {"heads": num_attention_heads, "dim_head": attention_head_dim, "dropout": dropout}
        heads["upcast_attention"] = upcast_attention
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, cross_attention_dim if only_cross_attention else None, **heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, cross_attention_dim, **heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, dropout=dropout)
        if gated:
            self.fuser = GatedSelfAttentionDense(dim, cross_attention_dim, num_attention_heads, attention_head_dim)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """x (B, tokens, dim) -> the same shape."""
        text, arguments = context.encoder_hidden_states, dict(context.arguments)
        objects = arguments.pop("gligen", None)
        first = text if self.only_cross_attention else None
        x = x + self.attn1(self.norm1(x), first, context.attention_mask, **arguments)
        if objects is not None:
            x = self.fuser(x, objects["objs"])
        x = x + self.attn2(self.norm2(x), text, context.encoder_attention_mask, **arguments)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks over the positions of (B, C, H, W), added to it (Rombach et al. 2022, section 3.3).

    The projections in and out are 1×1 convolutions, or linear layers over the positions if `use_linear_projection`.
    """

    def __init__(
        self,
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        num_layers: int,
        cross_attention_dim: int,
        norm_num_groups: int | None = 32,
        dropout: float = 0.0,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
        gated: bool = False,
    ):
        super().__init__()
        inner = num_attention_heads * attention_head_dim
        self.use_linear_projection = use_linear_projection
        self.gradient_checkpointing = False
        self.norm = group_norm(norm_num_groups, in_channels, 1e-6)
        self.proj_in = nn.Linear(in_channels, inner) if use_linear_projection else nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner,
                num_attention_heads,
                attention_head_dim,
                cross_attention_dim,
                dropout=dropout,
                only_cross_attention=only_cross_attention,
                upcast_attention=upcast_attention,
                gated=gated,
            )
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(inner, in_channels) if use_linear_projection else nn.Conv2d(inner, in_channels, 1)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        h = self.norm(x)
        if self.use_linear_projection:
            h = self.proj_in(h.flatten(2).transpose(1, 2))
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2).contiguous()
        for block in self.transformer_blocks:
            h = run(block, h, context, checkpointing=self.gradient_checkpointing)
        if self.use_linear_projection:
            return as_feature_map(self.proj_out(h), x) + x
        return self.proj_out(as_feature_map(h, x)) + x
