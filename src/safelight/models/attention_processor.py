"""The names under which scripts import attention and its processors."""

from __future__ import annotations

from ..nn.attention import Attention, AttnAddedKVProcessor, AttnProcessor

# Attention is always torch's fused kernel, so these are one.
AttnProcessor2_0 = AttnProcessor
AttnAddedKVProcessor2_0 = AttnAddedKVProcessor

__all__ = ["Attention", "AttnAddedKVProcessor", "AttnAddedKVProcessor2_0", "AttnProcessor", "AttnProcessor2_0"]
