from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from safelight import UNet2DConditionModel, UNet2DModel
from safelight.nn.blocks import free_lunch

from ..helpers.compare import relative_difference
from ..helpers.repositories import randomise
from ..helpers.unets import condition_config, inputs, unconditional_config

SIZE = (8, 16)


def _model(name: str) -> tuple[nn.Module, dict[str, Any]]:
    if name == "ddpm":
        config = unconditional_config(name)
        return randomise(UNet2DModel(**config)), inputs(config, size=SIZE)
    config = condition_config(name)
    return randomise(UNet2DConditionModel(**config)), inputs(config, size=SIZE)


@torch.no_grad()
def _layouts(model: nn.Module, call: dict[str, Any], layout: torch.memory_format) -> tuple[torch.Tensor, list[bool]]:
    """The output, and for every feature map inside whether it is laid out like that."""
    kept: list[bool] = []

    def look(module: nn.Module, _: Any, out: Any) -> None:
        # Of one position or one channel all layouts are the same.
        if isinstance(out, torch.Tensor) and out.ndim == 4 and min(out.shape[1:]) > 1:
            kept.append(out.is_contiguous(memory_format=layout))

    handles = [module.register_forward_hook(look) for module in model.modules()]
    sample = model(**{**call, "sample": call["sample"].contiguous(memory_format=layout)}).sample
    for handle in handles:
        handle.remove()
    return sample, kept


@pytest.mark.parametrize("name", ["sd1", "sd2", "spatial attention", "resnet samplers", "added keys", "ddpm"])
def test_the_memory_layout_is_kept(name: str) -> None:
    model, call = _model(name)
    plain, kept = _layouts(model, call, torch.contiguous_format)
    assert len(kept) > 20
    assert all(kept)
    pixels_first, kept = _layouts(model.to(memory_format=torch.channels_last), call, torch.channels_last)
    assert all(kept)
    assert relative_difference(pixels_first, plain) <= 1e-5


def test_dropout_is_for_training() -> None:
    model, call = _model("dropout")
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = model.train()(**call).sample, model(**call).sample
        assert relative_difference(first, second) > 1e-3
        assert torch.equal(model.eval()(**call).sample, model(**call).sample)


def test_free_lunch_scales_the_lowest_frequencies_and_half_of_the_backbone() -> None:
    columns = torch.arange(16) * torch.pi / 8
    constant, fast = torch.ones(1, 2, 16, 16), torch.cos(4 * columns).expand(1, 2, 16, 16)
    x, skip = free_lunch(torch.ones(1, 4, 16, 16), 3 * constant + fast, backbone=1.5, low=0.2)
    assert torch.allclose(skip, 0.6 * constant + fast, atol=1e-5)
    assert x[:, :2].unique() == 1.5
    assert x[:, 2:].unique() == 1.0
