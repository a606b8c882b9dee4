"""`VaeImageProcessor` and the picture helpers against diffusers: the same numbers."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers import utils as their_utils
from PIL import Image

from safelight import image_processor, utils

from ..helpers.compare import relative_difference

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (53, 71, 3), dtype=np.uint8)).resize((142, 107))
GREY = PHOTO.convert("L")
BATCH = RNG.random((2, 40, 56, 3), dtype=np.float32)
BATCH_PT = torch.from_numpy(BATCH.transpose(0, 3, 1, 2).copy())

CONFIGS = {
    "default": {},
    "factor 16": {"vae_scale_factor": 16},
    "no resize": {"do_resize": False},
    "no normalisation": {"do_normalize": False},
    "mask": {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True},
    "rgb": {"do_convert_rgb": True},
    "bicubic": {"resample": "bicubic"},
    "bilinear": {"resample": "bilinear"},
    "nearest": {"resample": "nearest"},
    "reducing gap": {"reducing_gap": 2},
}
INPUTS = {
    "pil": PHOTO,
    "grey pil": GREY,
    "pil list": [PHOTO, PHOTO.rotate(90)],
    "array": BATCH,
    "picture array": BATCH[0],
    "array list": [BATCH[0], BATCH[1]],
    "tensor": BATCH_PT,
    "picture tensor": BATCH_PT[0],
    "tensor list": [BATCH_PT[0], BATCH_PT[1]],
    "latents": torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(0)),
    "range of networks": BATCH_PT * 2 - 1,
}
# One grey picture or a batch of them, without a dimension for the channel: only with do_convert_grayscale.
GREY_INPUTS = {"grey array": BATCH[..., 0], "one grey array": BATCH[0, :, :, :1], "grey tensor": BATCH_PT[:, 0]}


def pair(**config):
    return image_processor.VaeImageProcessor(**config), diffusers.image_processor.VaeImageProcessor(**config)


@pytest.mark.parametrize("size", [{}, {"height": 40, "width": 99}], ids=["own size", "other size"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.filterwarnings("ignore:Passing `image`")
def test_preprocess(config, size):
    ours, theirs = pair(**CONFIGS[config])
    inputs = {**INPUTS, **(GREY_INPUTS if CONFIGS[config].get("do_convert_grayscale") else {})}
    for name, image in inputs.items():
        if CONFIGS[config].get("do_convert_grayscale") and name == "picture array":
            continue  # both take it for a batch of grey pictures, three pixels wide, and ours refuses that
        a, b = (one.preprocess(_copy(image), **size) for one in (ours, theirs))
        assert relative_difference(a, b) <= 1e-6, name
        assert a.dtype == b.dtype, name


def _copy(image):
    """Binarising writes on what it is given."""
    if isinstance(image, list):
        return [_copy(one) for one in image]
    return image.clone() if isinstance(image, torch.Tensor) else image.copy()


@pytest.mark.parametrize("mode", ["default", "fill", "crop"])
@pytest.mark.parametrize("size", [(64, 64), (40, 120), (120, 40), (107, 142)])
def test_resize_modes(mode, size):
    ours, theirs = pair()
    for image in (PHOTO, PHOTO.rotate(90, expand=True)):
        a, b = (np.asarray(one.resize(image, *size, resize_mode=mode)) for one in (ours, theirs))
        assert np.array_equal(a, b)


@pytest.mark.parametrize("mode", ["fill", "crop"])
def test_preprocess_with_crop_and_mode(mode):
    ours, theirs = pair()
    options = {"height": 48, "width": 80, "resize_mode": mode, "crops_coords": (7, 9, 100, 90)}
    a, b = (one.preprocess(PHOTO, **options) for one in (ours, theirs))
    assert torch.equal(a, b)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("do_denormalize", [None, [True, False]])
def test_postprocess(output_type, channels, do_denormalize):
    for config in ({}, {"do_normalize": False}):
        # Within the range that needs no clipping, which is where the two agree.
        pixels = BATCH_PT[:, :channels]
        a, b = (one.postprocess(pixels, output_type, do_denormalize) for one in pair(**config))
        for ours, theirs in zip(a, b, strict=True):
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert len(a) == 2


def test_default_size():
    ours, theirs = pair(vae_scale_factor=8)
    for image in (PHOTO, BATCH, BATCH_PT, BATCH[..., 0]):
        for asked in ({}, {"height": 33}, {"width": 47, "height": 90}):
            assert ours.get_default_height_width(image, **asked) == theirs.get_default_height_width(image, **asked)


@pytest.mark.parametrize("target", [(64, 64), (128, 32), (32, 128)])
@pytest.mark.parametrize(
    "box", [(60, 40, 80, 90), (0, 0, 5, 5), (130, 2, 142, 107), (0, 50, 142, 52), (0, 0, 142, 107)]
)
@pytest.mark.parametrize("pad", [0, 9])
def test_crop_region(target, box, pad):
    mask = Image.new("L", PHOTO.size)
    mask.paste(255, box)
    ours, theirs = pair()
    assert ours.get_crop_region(mask, *target, pad=pad) == theirs.get_crop_region(mask, *target, pad=pad)


@pytest.mark.parametrize("crop", [None, (10, 20, 90, 80)])
def test_overlay_and_blur(crop):
    mask = Image.new("L", PHOTO.size)
    mask.paste(255, (40, 30, 100, 70))
    ours, theirs = pair()
    new = PHOTO.rotate(180)
    blurred = [one.blur(mask, blur_factor=6) for one in (ours, theirs)]
    assert np.array_equal(*map(np.asarray, blurred))
    a, b = (one.apply_overlay(blurred[0], PHOTO, new, crop) for one in (ours, theirs))
    assert np.array_equal(np.asarray(a), np.asarray(b))
    assert np.asarray(a).std() > 1


def test_config():
    ours, theirs = pair(vae_scale_factor=16)
    assert dict(ours.config).items() >= {k: v for k, v in theirs.config.items() if not k.startswith("_")}.items()
    assert ours.to_json_string() == theirs.to_json_string()


def test_static_conversions():
    ours, theirs = pair()
    for name, argument in (
        ("numpy_to_pt", BATCH),
        ("numpy_to_pt", BATCH[..., 0]),
        ("pt_to_numpy", BATCH_PT),
        ("pil_to_numpy", [PHOTO]),
        ("pil_to_numpy", GREY),
        ("numpy_to_pil", BATCH),
        ("numpy_to_pil", BATCH[0]),
        ("normalize", BATCH),
        ("denormalize", BATCH_PT),
        ("convert_to_rgb", GREY),
        ("convert_to_grayscale", PHOTO),
    ):
        a, b = (getattr(one, name)(argument) for one in (ours, theirs))
        assert np.array_equal(np.asarray(a), np.asarray(b)), name


def test_utils():
    pixels = BATCH_PT * 2 - 1
    for name, arguments in (
        ("numpy_to_pil", (BATCH,)),
        ("pt_to_pil", (pixels,)),
        ("make_image_grid", ([PHOTO, PHOTO.rotate(180), PHOTO, PHOTO], 2, 2)),
        ("make_image_grid", ([PHOTO, PHOTO.rotate(180)], 1, 2, 20)),
    ):
        a, b = (getattr(library, name)(*arguments) for library in (utils, their_utils))
        assert np.array_equal(np.asarray(a), np.asarray(b)), name
    assert utils.PIL_INTERPOLATION == their_utils.PIL_INTERPOLATION


def test_gif(tmp_path):
    frames = [PHOTO.rotate(angle) for angle in (0, 90, 180)]
    a, b = (
        library.export_to_gif(frames, str(tmp_path / f"{library.__name__}.gif"), fps=5)
        for library in (utils, their_utils)
    )
    with open(a, "rb") as ours, open(b, "rb") as theirs:
        assert ours.read() == theirs.read()
