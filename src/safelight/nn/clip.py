"""The transformer that CLIP's text and image towers share (Radford et al. 2021, arXiv:2103.00020, section 2.4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError, InputError, check_choice
from .attention import attention


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


# By the names that `hidden_act` has in configs.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class CLIPAttention(nn.Module):
    """Multi-head self-attention: (B, tokens, width) -> (B, tokens, width); `mask` is added to the scores."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ConfigError(f"hidden_size {width} is not divisible by num_attention_heads {heads}")
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attention(q, k, v, mask=mask).transpose(1, 2).flatten(2))


class CLIPMLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        check_choice("hidden_act", activation, ACTIVATIONS)
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPLayer(nn.Module):
    """One pre-norm residual block: attention, then MLP."""

    def __init__(self, width: int, hidden: int, heads: int, activation: str, eps: float):
        super().__init__()
        self.self_attn = CLIPAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = CLIPMLP(width, hidden, activation)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """A stack of layers. Returns the last one's output and, where asked for, the input and all outputs as a tuple."""

    def __init__(self, layers: int, width: int, hidden: int, heads: int, activation: str, eps: float, dropout: float):
        super().__init__()
        if dropout:
            raise ConfigError(f"attention_dropout is {dropout}; 0.0, which all published CLIP models have, is needed")
        self.layers = nn.ModuleList(CLIPLayer(width, hidden, heads, activation, eps) for _ in range(layers))
        self.gradient_checkpointing = False
        self._initialise(width, layers)

    def _initialise(self, width: int, layers: int) -> None:
        """Standard deviations of the paper's own code: residual branches shrink with depth."""
        branch = (2 * layers * width) ** -0.5
        deviations = dict.fromkeys(("q_proj", "k_proj", "v_proj", "fc2"), branch)
        deviations.update(out_proj=width**-0.5, fc1=(2 * width) ** -0.5)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=deviations[name.rsplit(".", 1)[-1]])
                nn.init.zeros_(module.bias)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, keep_all: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        states = [x]
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, mask, use_reentrant=False)
            else:
                x = layer(x, mask)
            if keep_all:
                states.append(x)
        return x, tuple(states) if keep_all else None


class CLIPVisionEmbeddings(nn.Module):
    """Pixels (B, channels, size, size), normalised -> (B, 1 + patches, width), the class token first."""

    def __init__(self, width: int, channels: int, image_size: int, patch_size: int):
        super().__init__()
        self.image_size = image_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size, bias=False)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2 + 1, width)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        expected = (self.patch_embedding.in_channels, self.image_size, self.image_size)
        if tuple(pixels.shape[1:]) != expected:
            raise InputError(
                f"pixel values have the shape {tuple(pixels.shape)}; (batch, {', '.join(map(str, expected))}) is needed"
            )
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        return tokens + self.position_embedding.weight


class CLIPVisionTransformer(nn.Module):
    """CLIP's image tower: normalised pixels (B, 3, size, size) -> tokens (B, 1 + patches, width), pooled (B, width)."""

    def __init__(
        self,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 32,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(hidden_size, num_channels, image_size, patch_size)
        self.pre_layrnorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)  # the published files' spelling
        self.encoder = CLIPEncoder(
            num_hidden_layers,
            hidden_size,
            intermediate_size,
            num_attention_heads,
            hidden_act,
            layer_norm_eps,
            attention_dropout,
        )
        self.post_layernorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, _ = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return tokens, self.post_layernorm(tokens[:, 0])
