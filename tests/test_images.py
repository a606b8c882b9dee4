"""Conversion of pictures, grids, strips, GIFs, and settings kept in a PNG."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from safelight import InputError, NonFiniteError, RepositoryError, images


def gradient(width: int = 12, height: int = 8, channels: int = 3) -> np.ndarray:
    """(H, W, C) in [0, 1], every value on one of the 256 levels."""
    levels = np.arange(width * height * channels).reshape(height, width, channels) * 7 % 256
    return (levels / 255).astype(np.float32)


def picture(level: int = 90, size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.new("RGB", size, (level, 255 - level, level // 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_array_tensor_and_pil_are_the_same_picture(channels):
    batch = np.stack([gradient(channels=channels), 1 - gradient(channels=channels)])
    pil = images.to_pil(batch)
    assert [one.mode for one in pil] == [{1: "L", 3: "RGB"}[channels]] * 2
    assert pil[0].size == (12, 8)
    tensor = images.to_tensor(pil)
    assert tensor.shape == (2, channels, 8, 12)
    assert np.abs(images.to_numpy(tensor) - batch).max() < 1e-6
    levels = torch.from_numpy((batch * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
    assert torch.equal(images.to_tensor(levels), tensor)
    assert np.array_equal(np.asarray(images.to_pil(tensor)[1]), np.asarray(pil[1]))


def test_what_lies_outside_the_range_is_clipped_not_wrapped():
    array = np.array([[[-0.2], [1.2]]], dtype=np.float32)
    assert np.asarray(images.to_pil(array)[0]).tolist() == [[0, 255]]


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("culprit", [float("nan"), float("inf"), float("-inf")])
def test_no_picture_is_made_of_nan_or_infinity(culprit, output_type):
    pixels = torch.zeros(1, 3, 4, 4)
    pixels[0, 1, 2, 3] = culprit
    with pytest.raises(NonFiniteError, match="1 of 48 values"):
        images.postprocess(pixels, output_type)
    with pytest.raises(NonFiniteError, match="1 of 48 values"):
        images.to_pil(pixels)
    with pytest.raises(NonFiniteError, match="latents"):
        images.latent_preview(pixels)


def test_postprocess_maps_the_models_range():
    pixels = torch.tensor([-3.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2).bfloat16()
    assert images.postprocess(pixels, "pt").flatten().tolist() == [0, 0, 0.5, 1]
    assert images.postprocess(pixels, "np").dtype == np.float32
    assert images.postprocess(pixels, "latent") is pixels
    assert np.asarray(images.postprocess(pixels)[0]).tolist() == [[0, 0], [128, 255]]
    with pytest.raises(InputError, match="did you mean 'pil'"):
        images.postprocess(pixels, "pill")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 8, 8, 2)), r"\(2, 8, 8, 2\)"),
        (np.zeros(5), r"\(5,\)"),
    ],
)
def test_arrays_that_are_no_picture(wrong, message):
    with pytest.raises(InputError, match=message):
        images.to_pil(wrong)


def test_batches_need_one_size_and_a_known_range():
    with pytest.raises(InputError, match=r"4, 4.*12, 8"):
        images.to_tensor([picture(), picture(size=(4, 4))])
    with pytest.raises(InputError, match="int64"):
        images.to_tensor(torch.ones(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        images.to_tensor(np.zeros((4, 4)))


@pytest.mark.parametrize(("channels", "mode"), [(4, "RGB"), (16, "RGB"), (1, "L")])
def test_latent_preview(channels, mode):
    latents = torch.randn(2, channels, 3, 5, generator=torch.Generator().manual_seed(0))
    previews = images.latent_preview(latents, scale=8)
    assert [one.size for one in previews] == [(40, 24)] * 2
    assert previews[0].mode == mode
    assert np.asarray(previews[0]).std() > 1
    assert np.any(np.asarray(previews[0]) != np.asarray(previews[1]))


def test_latent_preview_knows_the_colours_of_stable_diffusion():
    # A decoder of these latents shows (about) the colour on the right: white, black.
    for channel_values, bright in (([1.0, 1.0, 1.0, -1.0], True), ([-1.0, -1.0, -1.0, 1.0], False)):
        preview = images.latent_preview(torch.tensor(channel_values).reshape(1, 4, 1, 1), scale=1)[0]
        assert (np.mean(preview) > 127) == bright


def test_grid_keeps_the_order_and_leaves_the_rest_black():
    cells = [picture(level) for level in (10, 20, 30, 40, 50)]
    grid = images.image_grid(cells, columns=2)
    assert grid.size == (24, 24)
    assert [grid.getpixel((x * 12, y * 8))[0] for y in range(3) for x in range(2)] == [10, 20, 30, 40, 50, 0]
    assert images.image_grid(cells).size == (36, 16)
    assert images.make_image_grid(cells[:4], rows=2, cols=2, resize=5).size == (10, 10)
    with pytest.raises(InputError, match=r"2 × 2 needs 4 pictures, and there are 5"):
        images.make_image_grid(cells, 2, 2)
    with pytest.raises(InputError, match="no pictures"):
        images.image_grid([])


def test_film_strip_shows_every_frame_with_its_label():
    frames = [picture(level, (28, 28)) for level in (10, 120, 240)]
    strip = images.film_strip(frames, ["noise", "step 10 of 20", "step 20 of 20"])
    cell = (strip.width - 4) // 3
    assert cell >= 128, "small frames are enlarged until they and their labels can be seen"
    assert [strip.getpixel((cell * k + cell // 2, 30))[0] for k in range(3)] == [10, 120, 240]
    below = np.asarray(strip.convert("L"))[-16:]
    assert all((below[:, cell * k : cell * (k + 1)] < 128).any() for k in range(3)), "a label under each"
    with pytest.raises(InputError, match="3 and 1"):
        images.film_strip(frames, ["noise"])


def test_gif_holds_the_last_frame(tmp_path):
    path = tmp_path / "way.gif"
    images.save_gif([picture(level, (28, 20)) for level in (10, 120, 240)], path, duration=100, hold=5)
    with Image.open(path) as gif:
        assert gif.n_frames == 3
        assert gif.size == (140, 100)
        assert gif.info["loop"] == 0
        durations = []
        for k in range(3):
            gif.seek(k)
            durations.append(gif.info["duration"])
    assert durations == [100, 100, 500]
    with pytest.raises(InputError, match="no frames"):
        images.save_gif([], path)


def test_png_gives_its_settings_back(tmp_path):
    settings = {"prompt": "a cat 🐈 우주", "seed": 3, "sigmas": [1.0, 0.5], "negative": None, "big": 2**62}
    path = tmp_path / "new folder" / "cat.png"
    images.save_png(picture(), path, settings)
    assert images.read_settings(path) == settings
    assert [file.name for file in path.parent.iterdir()] == ["cat.png"], "no temporary file stays"
    with Image.open(path) as back:
        assert np.array_equal(np.asarray(back), np.asarray(picture()))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "cat.png"
    images.save_png(picture(), path, {"seed": 1})
    with pytest.raises(TypeError):
        images.save_png(picture(), path, {"seed": object()})
    with pytest.raises(OSError, match="cannot write mode"):
        images.save_png(Image.new("CMYK", (2, 2)), path, {"seed": 2})
    assert images.read_settings(path) == {"seed": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_files_without_settings_are_named(tmp_path):
    def refused(name: str, message: str) -> None:
        with pytest.raises(RepositoryError, match=message) as caught:
            images.read_settings(tmp_path / name)
        assert name in str(caught.value)

    refused("none.png", "no file")
    (tmp_path / "text.png").write_text("no picture")
    refused("text.png", "cannot be read")
    images.save_png(picture(), tmp_path / "plain.png")
    refused("plain.png", "no settings")
    picture().save(tmp_path / "photo.jpg")
    refused("photo.jpg", "no settings")
    whole = tmp_path / "whole.png"
    images.save_png(picture(), whole, {"prompt": "x" * 500})
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:120])
    refused("cut.png", "cannot be read|no settings")
