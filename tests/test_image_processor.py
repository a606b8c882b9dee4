"""What `VaeImageProcessor` refuses, and where it is stricter than its model."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from safelight import ConfigError, InputError, NonFiniteError, UnknownArgumentError
from safelight.image_processor import VaeImageProcessor, is_valid_image, is_valid_image_imagelist

PHOTO = Image.new("RGB", (40, 24), (10, 20, 30))
BAD_INPUTS = {
    "a string": ("photo.png", "photo.png"),
    "None": (None, "None"),
    "nothing": ([], "empty list"),
    "mixed": ([PHOTO, np.zeros((24, 40, 3))], "Image and ndarray"),
    "a vector": (np.zeros(7), r"\(7,\)"),
    "two shapes": ([np.zeros((24, 40, 3)), np.zeros((24, 48, 3))], r"24, 40, 3.*24, 48, 3"),
    "integers": (torch.ones(1, 3, 16, 16, dtype=torch.int64), "int64"),
    "NaN": (np.full((1, 16, 16, 3), np.nan), "NaN"),
    "too small": (PHOTO.resize((40, 4)), "40 × 4"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_preprocess_refuses(name):
    image, message = BAD_INPUTS[name]
    with pytest.raises(InputError, match=message):
        VaeImageProcessor().preprocess(image)


def test_bad_options():
    processor = VaeImageProcessor()
    with pytest.raises(InputError, match="did you mean 'crop'"):
        processor.resize(PHOTO, 8, 8, resize_mode="crops")
    with pytest.raises(InputError, match="works on PIL images; this is ndarray"):
        processor.resize(np.zeros((1, 8, 8, 3)), 8, 8, resize_mode="fill")
    with pytest.raises(InputError, match="black everywhere"):
        processor.get_crop_region(Image.new("L", (8, 8)), 8, 8)
    with pytest.raises(InputError, match="list"):
        processor.postprocess([torch.zeros(3, 8, 8)])
    with pytest.raises(InputError, match="1 entries, but there are 2"):
        processor.postprocess(torch.zeros(2, 3, 8, 8), do_denormalize=[True])
    with pytest.raises(InputError, match="output_type"):
        processor.postprocess(torch.zeros(2, 3, 8, 8), "image")


def test_bad_configs():
    with pytest.raises(ConfigError, match="do_convert_rgb and do_convert_grayscale"):
        VaeImageProcessor(do_convert_rgb=True, do_convert_grayscale=True)
    with pytest.raises(ConfigError, match="did you mean 'lanczos'"):
        VaeImageProcessor(resample="lancsoz")
    with pytest.raises(UnknownArgumentError, match="vae_scale_factor"):
        VaeImageProcessor(vae_scale=8)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_no_picture_of_nan(output_type):
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="1 of 192"):
        VaeImageProcessor().postprocess(pixels, output_type)


def test_bytes_are_read_as_bytes():
    processor = VaeImageProcessor()
    array = np.asarray(PHOTO)
    expected = processor.preprocess(PHOTO)
    assert torch.equal(processor.preprocess(array), expected)
    assert torch.equal(processor.preprocess(torch.from_numpy(array.copy()).permute(2, 0, 1)), expected)


def test_the_range_of_networks_is_taken_as_it_is_and_reported(caplog):
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(VaeImageProcessor().preprocess(image), image)
    assert "-1 to 1" in caplog.text


def test_what_counts_as_a_picture():
    assert is_valid_image(PHOTO)
    assert is_valid_image(np.zeros((4, 4)))
    assert not is_valid_image(np.zeros((1, 4, 4, 3)))
    assert is_valid_image_imagelist(np.zeros((1, 4, 4, 3)))
    assert is_valid_image_imagelist([PHOTO, torch.zeros(3, 4, 4)])
    assert not is_valid_image_imagelist(["photo.png"])
