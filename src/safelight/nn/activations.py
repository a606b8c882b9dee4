"""Activation functions by the names that configs use."""

from __future__ import annotations

from torch import nn

from ..errors import check_choice

ACTIVATIONS = {"swish": nn.SiLU, "silu": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}


def activation(name: str, what: str = "act_fn") -> nn.Module:
    """The activation called `name`; raises `ConfigError`, naming the argument `what`, if there is none."""
    name = str(name).lower()
    check_choice(what, name, ACTIVATIONS)
    return ACTIVATIONS[name]()
