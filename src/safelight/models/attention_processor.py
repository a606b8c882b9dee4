"""Attention and its default processors under the name that scripts import them from."""

from __future__ import annotations

from ..nn.attention import Attention, AttnAddedKVProcessor, AttnProcessor

# One default serves every release of torch that is supported: its kernel is the fused one.
AttnProcessor2_0 = AttnProcessor
AttnAddedKVProcessor2_0 = AttnAddedKVProcessor

__all__ = ["Attention", "AttnAddedKVProcessor", "AttnAddedKVProcessor2_0", "AttnProcessor", "AttnProcessor2_0"]
