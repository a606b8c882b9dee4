"""The safety checker and CLIP's image processor against diffusers and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers.pipelines.stable_diffusion as theirs_module
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from safelight.models.clip_image_processor import CLIPImageProcessor
from safelight.models.safety_checker import StableDiffusionSafetyChecker

from ..helpers.repositories import VISION, randomise

PROCESSORS: list[dict[str, Any]] = [
    {},
    {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    {"size": 48, "crop_size": 64, "resample": 2},
    {"size": {"height": 40, "width": 30}, "crop_size": {"height": 31, "width": 41}},
    {"do_resize": False},
    {"do_center_crop": False, "do_normalize": False},
    {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 61.0, 62.0]},
]


def _picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("settings", PROCESSORS, ids=str)
def test_same_pixels(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = CLIPImageProcessorPil(**settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = CLIPImageProcessor.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    back = CLIPImageProcessorPil.from_pretrained(tmp_path / "ours")
    for picture in (_picture(64, 64), _picture(37, 90, "L"), _picture(300, 201, "RGBA"), _picture(20, 21, "P")):
        a = ours([picture], return_tensors="pt").pixel_values
        for processor in (theirs, back):
            assert torch.equal(a, processor([picture], return_tensors="pt").pixel_values)
    array = np.asarray(picture.convert("RGB"))
    assert torch.equal(a, ours(array, return_tensors="pt").pixel_values)


def _pair(folder: Path, threshold: float) -> tuple[StableDiffusionSafetyChecker, Any]:
    config = transformers.CLIPConfig(vision_config=VISION, projection_dim=32)
    theirs = randomise(theirs_module.StableDiffusionSafetyChecker(config))
    theirs.concept_embeds_weights.data.fill_(threshold + 0.15)
    theirs.special_care_embeds_weights.data.fill_(threshold)
    theirs.save_pretrained(folder)
    return StableDiffusionSafetyChecker.from_pretrained(folder), theirs


@pytest.mark.parametrize(("threshold", "fewest", "most"), [(-1.0, 64, 64), (0.1, 8, 56), (1.0, 0, 0)])
def test_same_decisions(tmp_path: Path, threshold: float, fewest: int, most: int) -> None:
    ours, theirs = _pair(tmp_path, threshold)
    pixels = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = np.random.default_rng(0).random((64, 8, 8, 3), dtype=np.float32) + 0.1
    before = images.copy()
    (a, flagged), (b, expected) = ours(images=images, clip_input=pixels), theirs(pixels, images.copy())
    assert flagged == expected
    assert fewest <= sum(flagged) <= most
    assert np.array_equal(a, b)
    assert np.array_equal(images, before), "the images passed in were changed"
    as_list, as_tensor = (ours(pixels, kind)[0] for kind in (list(images), torch.from_numpy(images)))
    assert np.array_equal(np.stack(as_list), b)
    assert np.array_equal(as_tensor.numpy(), b)


def test_a_special_concept_lowers_the_other_thresholds(tmp_path: Path) -> None:
    ours, theirs = _pair(tmp_path, 0.0)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    embedding = torch.nn.functional.normalize(theirs.visual_projection(theirs.vision_model(pixels)[1]))
    cosine = (embedding @ torch.nn.functional.normalize(theirs.concept_embeds).T)[0, 5].item()
    decisions = []
    for checker in (ours, theirs):
        for care, distance in ((1.0, 0.005), (-1.0, 0.005), (-1.0, 0.015)):
            checker.special_care_embeds_weights.data.fill_(care)
            checker.concept_embeds_weights.data.fill_(1.0)[5] = cosine + distance
            decisions += checker(pixels, np.ones((1, 2, 2, 3)))[1]
    assert decisions == [False, True, False] * 2


def test_same_files_both_ways(tmp_path: Path) -> None:
    ours, theirs = _pair(tmp_path / "theirs", 0.1)
    ours.save_pretrained(tmp_path / "ours")
    keys = list(load_file(tmp_path / "ours" / "model.safetensors"))
    # The Hub's own spelling, which version 4 of transformers needs.
    assert "vision_model.vision_model.embeddings.class_embedding" in keys
    again = StableDiffusionSafetyChecker.from_pretrained(tmp_path / "ours")
    back, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    for one, two in ((back, theirs), (again, ours)):
        assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    written, original = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs"))
    assert written.pop("torch_dtype") == original["dtype"]
    assert written == original


def test_full_size_keys_and_shapes() -> None:
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    config = transformers.CLIPConfig(vision_config=vision, projection_dim=768)
    with torch.device("meta"):
        ours = StableDiffusionSafetyChecker(vision_config=vision, projection_dim=768)
        theirs = theirs_module.StableDiffusionSafetyChecker(config)
    # Transformers 5 drops one of the two prefixes that the files have.
    shapes = {key.replace("vision_model.vision_model", "vision_model"): v.shape for key, v in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert ours.num_parameters() == theirs.num_parameters() == 303_981_588
