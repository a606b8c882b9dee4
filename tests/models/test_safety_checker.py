from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from safelight.errors import ConfigError, InputError, UnknownArgumentError
from safelight.models.clip_image_processor import CLIPImageProcessor
from safelight.models.safety_checker import StableDiffusionSafetyChecker

from ..helpers.repositories import VISION, randomise


def _checker(threshold: float) -> StableDiffusionSafetyChecker:
    checker = randomise(StableDiffusionSafetyChecker(vision_config=VISION, projection_dim=32))
    checker.concept_embeds_weights.data.fill_(threshold)
    return checker


def test_what_is_flagged_is_black_even_where_it_was_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    images = [np.full((2, 2, 3), np.nan), np.full((4, 2, 3), 200, dtype=np.uint8)]
    with caplog.at_level(logging.WARNING):
        black, flagged = _checker(-1.0)(images=images, clip_input=torch.randn(2, 3, 32, 32))
    assert flagged == [True, True]
    assert [image.max() for image in black] == [0, 0]
    assert [image.dtype for image in black] == [np.float64, np.uint8]
    assert "2 of 2" in caplog.text
    kept, flagged = _checker(1.0)(images=images, clip_input=torch.randn(2, 3, 32, 32))
    assert (kept, flagged) == (images, [False, False])


def test_half_precision_decides_alike() -> None:
    pixels, images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), np.ones((16, 2, 2, 3))
    checker = _checker(0.2)
    exact, half = checker(pixels, images)[1], checker.bfloat16()(pixels, images)[1]
    assert 0 < sum(exact) < 16
    assert sum(a != b for a, b in zip(exact, half, strict=True)) <= 1


def test_bad_inputs() -> None:
    checker = _checker(1.0)
    with pytest.raises(InputError, match="3 images"):
        checker(torch.zeros(2, 3, 32, 32), np.zeros((3, 2, 2, 3)))
    with pytest.raises(InputError, match="32, 32"):
        checker(torch.zeros(2, 3, 16, 16), np.zeros((2, 2, 2, 3)))


def test_old_configs() -> None:
    config = {"vision_config": {"hidden_size": 8}, "vision_config_dict": {**VISION, "top_k": 50}, "projection_dim": 16}
    checker = StableDiffusionSafetyChecker.from_config(config)
    assert checker.visual_projection.weight.shape == (16, 32)
    old = {"size": 32, "crop_size": 16, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    processor = CLIPImageProcessor.from_config(old)
    assert processor(np.zeros((40, 50, 3), dtype=np.uint8), return_tensors="np").pixel_values.shape == (1, 3, 16, 16)
    assert '"image_processor_type": "CLIPImageProcessor"' in processor.to_json_string()


def test_floats_are_pictures_in_0_to_1() -> None:
    processor, values = CLIPImageProcessor(size=8, crop_size=8), np.random.default_rng(0).integers(0, 256, (9, 9, 3))
    a, b = processor(values.astype(np.uint8)), processor(torch.from_numpy(values / 255))
    assert np.array_equal(a.pixel_values[0], b.pixel_values[0])


BAD_PICTURES = {
    "a path": (("picture.png",), {}, InputError, "str"),
    "no colours": ((np.zeros((4, 4), dtype=np.uint8),), {}, InputError, r"\(4, 4\)"),
    "tensors": ((np.zeros((4, 4, 3)),), {"return_tensors": "jax"}, InputError, "jax"),
    "misspelt": ((np.zeros((4, 4, 3)),), {"return_tensor": "pt"}, UnknownArgumentError, "return_tensor"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures(name: str) -> None:
    args, options, error, word = BAD_PICTURES[name]
    with pytest.raises(error, match=word):
        CLIPImageProcessor()(*args, **options)


@pytest.mark.parametrize("settings", [{"size": {"longest_edge": 3}}, {"crop_size": {"shortest_edge": 3}}], ids=str)
def test_bad_sizes(settings: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CLIPImageProcessor(**settings)


def test_sizes_that_do_not_stack() -> None:
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)
    with pytest.raises(InputError, match="several sizes"):
        processor([np.zeros((4, 4, 3)), np.zeros((5, 4, 3))], return_tensors="pt")
