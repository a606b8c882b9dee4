"""The U-Nets against diffusers': the same weights give the same output, the same config the same parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from safelight import UNet2DConditionModel, UNet2DModel

from ..helpers.compare import relative_difference
from ..helpers.unets import (
    CONDITION,
    FULL_SIZE,
    UNCONDITIONAL,
    condition_config,
    inputs,
    matched,
    unconditional_config,
)

TOLERANCE = 1e-5


def _difference(ours: nn.Module, theirs: nn.Module, **arguments: Any) -> float:
    with torch.no_grad():
        expected = theirs(**arguments).sample
        assert expected.abs().max() > 1e-2, "an output of nothing proves nothing"
        return relative_difference(ours(**arguments).sample, expected)


@pytest.mark.parametrize("name", CONDITION)
def test_conditional(name: str):
    config = condition_config(name)
    ours, theirs = matched(UNet2DConditionModel, diffusers.UNet2DConditionModel, config)
    assert _difference(ours, theirs, **inputs(config)) <= TOLERANCE


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_unconditional(name: str):
    config = unconditional_config(name)
    ours, theirs = matched(UNet2DModel, diffusers.UNet2DModel, config)
    assert _difference(ours, theirs, **inputs(config, size=(16, 16))) <= TOLERANCE


@pytest.mark.parametrize(("batch", "size"), [(1, (6, 10)), (3, (9, 7)), (1, (5, 13)), (4, (3, 16))], ids=str)
@pytest.mark.parametrize("name", ["sd1", "sdxl", "x4 upscaler"])
def test_conditional_at_odd_sizes(name: str, size: tuple[int, int], batch: int):
    config = condition_config(name)
    ours, theirs = matched(UNet2DConditionModel, diffusers.UNet2DConditionModel, config)
    assert _difference(ours, theirs, **inputs(config, batch, size)) <= TOLERANCE


@pytest.mark.parametrize(("batch", "size"), [(1, (8, 24)), (3, (32, 16))], ids=str)
@pytest.mark.parametrize("name", ["ddpm", "ldm", "ncsn++"])
def test_unconditional_at_other_sizes(name: str, size: tuple[int, int], batch: int):
    config = unconditional_config(name)
    ours, theirs = matched(UNet2DModel, diffusers.UNet2DModel, config)
    assert _difference(ours, theirs, **inputs(config, batch, size)) <= TOLERANCE


ROUND_TRIPS = {
    "sdxl": (UNet2DConditionModel, diffusers.UNet2DConditionModel, condition_config("sdxl")),
    "encoder_hid_dim": (UNet2DConditionModel, diffusers.UNet2DConditionModel, condition_config("encoder_hid_dim")),
    "ddpm": (UNet2DModel, diffusers.UNet2DModel, unconditional_config("ddpm")),
    "ncsn++": (UNet2DModel, diffusers.UNet2DModel, unconditional_config("ncsn++")),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_each_loads_what_the_other_saves(name: str, tmp_path: Path):
    kind, their_kind, config = ROUND_TRIPS[name]
    ours, theirs = matched(kind, their_kind, config)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    arguments = inputs(config, size=(16, 16))
    loaded = kind.from_pretrained(tmp_path / "theirs"), their_kind.from_pretrained(tmp_path / "ours")
    assert _difference(*loaded, **arguments) <= TOLERANCE
    with torch.no_grad():
        assert torch.equal(loaded[0](**arguments).sample, ours(**arguments).sample)
        assert torch.equal(loaded[1](**arguments).sample, theirs(**arguments).sample)


TIMES = {"int": 7, "float": 7.5, "0-d": torch.tensor(7), "one": torch.tensor([7]), "each": torch.tensor([7, 950])}


@pytest.mark.parametrize("kind", TIMES)
def test_kinds_of_timestep(kind: str):
    for config, ours, theirs in (
        (condition_config("sd1"), UNet2DConditionModel, diffusers.UNet2DConditionModel),
        (unconditional_config("ddpm"), UNet2DModel, diffusers.UNet2DModel),
    ):
        if kind == "float" and ours is UNet2DModel:
            continue  # cut to 7 there: see the next test
        arguments = {**inputs(config, size=(16, 16)), "timestep": TIMES[kind]}
        assert _difference(*matched(ours, theirs, config), **arguments) <= TOLERANCE


def test_a_fractional_timestep_is_not_cut():
    config = unconditional_config("ddpm")
    ours, theirs = matched(UNet2DModel, diffusers.UNet2DModel, config)
    arguments = inputs(config, size=(16, 16))
    with torch.no_grad():
        expected = theirs(arguments["sample"], torch.tensor([7.5])).sample
        assert relative_difference(ours(arguments["sample"], 7.5).sample, expected) <= TOLERANCE


@pytest.mark.parametrize("which", ["attention_mask", "encoder_attention_mask", "both"])
@pytest.mark.parametrize("name", ["sd1", "added keys"])
def test_masks(name: str, which: str):
    config = condition_config(name)
    if name == "sd1":  # a mask over the pixels fits one resolution only
        config.update(down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",))
        config.update(block_out_channels=(16,))
    arguments = inputs(config, size=(4, 4))
    text = torch.ones(2, arguments["encoder_hidden_states"].shape[1], dtype=torch.bool)
    text[0, 3:], text[1, :2] = False, False
    pixels = (torch.arange(32).reshape(2, 16) % 3 > 0) if name == "sd1" else text.flip(1)
    if which != "encoder_attention_mask":
        arguments["attention_mask"] = pixels.long()
    if which != "attention_mask":
        arguments["encoder_attention_mask"] = text
    ours, theirs = matched(UNet2DConditionModel, diffusers.UNet2DConditionModel, config)
    assert _difference(ours, theirs, **arguments) <= TOLERANCE
    plain = {key: value for key, value in arguments.items() if "mask" not in key}
    with torch.no_grad():
        assert relative_difference(ours(**arguments).sample, ours(**plain).sample) > 1e-3


def _residuals(model: nn.Module, arguments: dict[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Noise shaped like what the way down keeps, and like the middle's output."""
    kept: list[torch.Tensor] = []
    handles = [model.conv_in.register_forward_hook(lambda m, i, out: kept.append(out))]
    for block in model.down_blocks:
        handles.append(block.register_forward_hook(lambda m, i, out: kept.extend(out[1])))
    with torch.no_grad():
        model(**arguments)
    for handle in handles:
        handle.remove()
    draw = torch.Generator().manual_seed(5)
    noise = [torch.randn(tensor.shape, generator=draw) for tensor in kept]
    return noise, torch.randn(noise[-1].shape, generator=draw)


def test_residuals_of_a_controlnet():
    config = condition_config("sdxl")
    ours, theirs = matched(UNet2DConditionModel, diffusers.UNet2DConditionModel, config)
    arguments = inputs(config, size=(7, 9))
    down, middle = _residuals(theirs, arguments)
    arguments.update(down_block_additional_residuals=tuple(down), mid_block_additional_residual=middle)
    assert _difference(ours, theirs, **arguments) <= TOLERANCE


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_residuals_of_an_adapter(name: str):
    config = condition_config(name)
    ours, theirs = matched(UNet2DConditionModel, diffusers.UNet2DConditionModel, config)
    arguments = inputs(config)
    kept, middle = _residuals(theirs, arguments)
    layers = config["layers_per_block"]
    # In each stage an adapter adds to the last layer, or, where there is no text, to what leaves the stage.
    features, start = [], 1
    for kind in config["down_block_types"]:
        end = start + layers + (kind != config["down_block_types"][-1])
        features.append(kept[start + layers - 1 if kind.startswith("Cross") else end - 1])
        start = end
    given = [*features, middle]
    with torch.no_grad():
        copies = [each.clone() for each in given]
        expected = theirs(**arguments, down_intrablock_additional_residuals=copies).sample
        actual = ours(**arguments, down_intrablock_additional_residuals=given).sample
    assert len(given) == len(features) + 1, "the caller's list is left alone"
    assert relative_difference(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("size", [(8, 8), (7, 5)], ids=str)
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_freeu(name: str, size: tuple[int, int]):
    config = condition_config(name)
    ours, theirs = matched(UNet2DConditionModel, diffusers.UNet2DConditionModel, config)
    arguments = inputs(config, size=size)
    with torch.no_grad():
        plain = ours(**arguments).sample
    for model in (ours, theirs):
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    assert _difference(ours, theirs, **arguments) <= TOLERANCE
    with torch.no_grad():
        assert relative_difference(ours(**arguments).sample, plain) > 1e-2
        ours.disable_freeu()
        assert torch.equal(ours(**arguments).sample, plain)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_parameters(name: str):
    kind, config, count = FULL_SIZE[name]
    ours, theirs = (
        {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}[kind],
        getattr(diffusers, kind),
    )
    with torch.device("meta"):
        model, reference = ours(**config), theirs(**config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in reference.state_dict().items()}
    assert model.num_parameters() == count


@pytest.mark.parametrize("kind", ["UNet2DModel", "UNet2DConditionModel"])
def test_configs_are_the_same(kind: str):
    ours = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}[kind]
    with torch.device("meta"):
        mine, other = ours().config, getattr(diffusers, kind)().config
    public = [key for key in other if not key.startswith("_")]
    assert [key for key in mine if not key.startswith("_")] == public
    assert {key: mine[key] for key in public} == {key: other[key] for key in public}


def test_gradients_are_the_same_with_and_without_checkpointing():
    config = condition_config("sdxl")
    ours, theirs = matched(UNet2DConditionModel, diffusers.UNet2DConditionModel, config)
    arguments = inputs(config)
    gradients = []
    for model, checkpointing in ((theirs, False), (ours, False), (ours, True)):
        model.zero_grad()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**arguments).sample.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    expected, plain, recomputed = gradients
    for name, gradient in expected.items():
        # A bias before a norm has no gradient but for rounding.
        floor = 1e-7
        assert (plain[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + floor, name
        assert torch.equal(plain[name], recomputed[name]), name
