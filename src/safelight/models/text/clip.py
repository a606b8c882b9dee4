"""CLIP's text encoder, which Stable Diffusion 1, 2 and XL read their prompts with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...configuration import register_to_config
from ...errors import InputError
from ...nn.clip import CLIPEncoder
from ...outputs import Output
from ..transformers_layout import TransformersModel

# A buffer of old versions, and what a file of the whole of CLIP holds besides its text tower.
_LEFTOVERS = (r"embeddings\.position_ids$", r"^(vision_model|visual_projection)\.", r"^logit_scale$")


@dataclass
class CLIPTextOutput(Output):
    """Token states (B, tokens, width) after the last norm, the end token's (B, width), and the states of all layers."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class CLIPTextProjectionOutput(Output):
    """The projected end token (B, projection_dim), token states (B, tokens, width), and the states of all layers."""

    text_embeds: torch.Tensor
    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None


class CLIPTextEmbeddings(nn.Module):
    """Ids (B, tokens) -> token plus position embeddings (B, tokens, width)."""

    def __init__(self, vocab_size: int, max_positions: int, width: int, std: float):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(max_positions, width)
        nn.init.normal_(self.token_embedding.weight, std=std)
        nn.init.normal_(self.position_embedding.weight, std=std)

    def forward(self, ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        length, limit = ids.shape[-1], self.position_embedding.num_embeddings
        if length > limit:
            raise InputError(
                f"the text has {length} tokens, but this encoder has {limit} positions; "
                f"tokenise with truncation=True, max_length={limit}"
            )
        positions = (
            self.position_embedding.weight[:length] if position_ids is None else self.position_embedding(position_ids)
        )
        return self.token_embedding(ids) + positions


class CLIPTextTransformer(nn.Module):
    """CLIP's text tower: ids -> (token states after the last norm, states of all layers before it or None)."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        std = config["initializer_range"] * config["initializer_factor"]
        self.embeddings = CLIPTextEmbeddings(config["vocab_size"], config["max_position_embeddings"], width, std)
        self.encoder = CLIPEncoder(
            config["num_hidden_layers"],
            width,
            config["intermediate_size"],
            config["num_attention_heads"],
            config["hidden_act"],
            eps,
            config["attention_dropout"],
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self,
        ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        keep_all: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        x = self.embeddings(ids, position_ids)
        x, states = self.encoder(x, causal_mask(x, attention_mask), keep_all)
        return self.final_layer_norm(x), states


def causal_mask(x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """What to add to the scores (B or 1, 1, tokens, tokens): token i sees the tokens up to i whose mask is not 0."""
    length = x.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None, None]
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None].to(device=x.device, dtype=torch.bool)
    # The lowest finite number: a row that sees nothing must not become NaN.
    return torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, torch.finfo(x.dtype).min)


class CLIPTextModel(TransformersModel):
    """CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020): ids (B, tokens ≤ 77) -> states (B, tokens, width).

    The constructor's arguments are the entries of transformers' config. An `eos_token_id` of 2, which old configs hold
    by mistake, pools at the largest id of each row; any other at its first occurrence.
    """

    _model_type = "clip_text_model"
    _projects = False
    # transformers 5 leaves out the prefix that its own earlier versions need; both it and they read it.
    _old_keys = ((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),)
    _ignored_keys: ClassVar[tuple[str, ...]] = (*_LEFTOVERS, r"^text_projection\.weight$")

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        projection_dim: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 49406,
        eos_token_id: int | None = 49407,
    ):
        super().__init__()
        self.text_model = CLIPTextTransformer(self.config)
        if self._projects:
            self.text_projection = nn.Linear(hidden_size, projection_dim, bias=False)
            nn.init.normal_(self.text_projection.weight, std=hidden_size**-0.5 * initializer_factor)

    @classmethod
    def from_config(cls, config: Any = None, **overrides: Any) -> Any:
        """Build from a text encoder's config, or from that of a whole CLIP model, whose `text_config` is taken."""
        if isinstance(config, Mapping) and "text_config" in config:
            newer, older = config["text_config"], config.get("text_config_dict")
            config = {"projection_dim": config.get("projection_dim", 512), **(newer or {}), **(older or {})}
        return super().from_config(config, **overrides)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_model.embeddings.token_embedding = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> nn.Embedding:
        """Grow or shrink the vocabulary, keeping the rows that stay, and return the embedding; new rows are random."""
        old = self.get_input_embeddings()
        if new_num_tokens is None or new_num_tokens == old.num_embeddings:
            return old
        if new_num_tokens < 1:
            raise InputError(f"new_num_tokens is {new_num_tokens}; at least 1 is needed")
        new = nn.Embedding(new_num_tokens, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
        nn.init.normal_(new.weight, std=self.config.initializer_range * self.config.initializer_factor)
        kept = min(new_num_tokens, old.num_embeddings)
        with torch.no_grad():
            new.weight[:kept] = old.weight[:kept]
        new.weight.requires_grad_(old.weight.requires_grad)
        self.set_input_embeddings(new)
        self.register_to_config(vocab_size=new_num_tokens)
        return new

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = False,
        return_dict: bool | None = True,
    ) -> Any:
        """Encode ids (B, tokens); `attention_mask` (B, tokens) is 0 at tokens that no other may see.

        Returns `CLIPTextOutput` (or, without `return_dict`, a tuple). `hidden_states` are the embeddings and every
        layer's output, before the last norm. Raises `InputError` for too many tokens and for ids outside the
        vocabulary.
        """
        ids = self._checked(input_ids)
        states, hidden_states = self.text_model(ids, attention_mask, position_ids, bool(output_hidden_states))
        eos = self.config.eos_token_id
        end = ids if eos == 2 else ids == eos  # in both, the largest value at its first occurrence is the end token
        rows = torch.arange(len(ids), device=ids.device)
        output = self._output(states, states[rows, end.int().argmax(dim=-1)], hidden_states)
        return output.to_tuple() if return_dict is False else output

    def _output(
        self, states: torch.Tensor, pooled: torch.Tensor, hidden_states: tuple[torch.Tensor, ...] | None
    ) -> Output:
        return CLIPTextOutput(states, pooled, hidden_states)

    def _checked(self, ids: Any) -> torch.Tensor:
        if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or not ids.numel():
            what = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, torch.Tensor) else type(ids).__name__
            raise InputError(f"input_ids must be a tensor of token ids, (batch, tokens) integers, not {what}")
        size = self.get_input_embeddings().num_embeddings
        # On other devices a look at the values would stall the queue.
        if ids.device.type == "cpu" and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise InputError(
                f"input_ids reach from {int(ids.min())} to {int(ids.max())}, but the vocabulary has {size} entries; "
                f"after adding tokens call resize_token_embeddings(len(tokenizer))"
            )
        return ids.reshape(-1, ids.shape[-1])


class CLIPTextModelWithProjection(CLIPTextModel):
    """CLIP's text encoder with the projection to the space that text and images share, as Stable Diffusion XL uses it.

    Returns `CLIPTextProjectionOutput`, whose first entry is `text_embeds` (B, projection_dim).
    """

    _projects = True
    _ignored_keys = _LEFTOVERS

    def _output(
        self, states: torch.Tensor, pooled: torch.Tensor, hidden_states: tuple[torch.Tensor, ...] | None
    ) -> Output:
        return CLIPTextProjectionOutput(self.text_projection(pooled), states, hidden_states)
