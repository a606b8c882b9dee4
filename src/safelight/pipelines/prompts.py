"""From prompts to the hidden states that a denoiser attends to."""

from __future__ import annotations

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


def encode_clip(
    tokenizer: Any,
    text_encoder: Any,
    prompts: list[str],
    device: torch.device,
    clip_skip: int | None = None,
    max_length: int | None = None,
) -> torch.Tensor:
    """CLIP hidden states of `prompts`, (batch, tokens, dim); what does not fit the window is reported.

    `clip_skip` k takes the states k layers before the last, through the final norm. Takes this library's text encoder
    or transformers' own.
    """
    length = max_length or tokenizer.model_max_length
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    if max_length is None:
        _report_truncated(tokenizer, prompts, length)
    mask = tokens.attention_mask.to(device) if getattr(text_encoder.config, "use_attention_mask", False) else None
    ids = tokens.input_ids.to(device)
    if clip_skip is None:
        return text_encoder(ids, attention_mask=mask)[0]
    states = text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm(states)


def _report_truncated(tokenizer: Any, prompts: list[str], length: int) -> None:
    for prompt, ids in zip(prompts, tokenizer(prompts).input_ids, strict=True):
        if len(ids) > length:
            logger.warning(
                "the prompt %r is longer than the %d tokens that CLIP reads; this was cut off: %r",
                prompt,
                length,
                tokenizer.decode(ids[length - 1 : -1]),
            )
