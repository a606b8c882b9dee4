"""Pictures: PIL, array and tensor; grids, film strips and GIFs; settings kept inside a PNG.

Arrays are (B, H, W, C), tensors (B, C, H, W); C is 1 (grey) or 3, and values lie in [0, 1] unless said otherwise.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .configuration import to_json, write_atomically
from .errors import InputError, NonFiniteError, RepositoryError, check_choice

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

# The PNG text chunk that holds the settings a picture was made with, as JSON.
_SETTINGS_KEY = "safelight"

# How much red, green and blue (in [-1, 1]) each latent channel of Stable Diffusion 1 and 2 stands for: a linear fit.
_LATENT_COLOURS = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))

Pictures = Image.Image | np.ndarray | torch.Tensor | Sequence[Image.Image]


# --- conversion -------------------------------------------------------------------------------------------------------


def check_finite(values: np.ndarray | torch.Tensor, what: str = "the picture") -> None:
    """Raise `NonFiniteError` where `values` hold NaN or infinity, which would otherwise become black pixels."""
    finite = torch.isfinite(values) if isinstance(values, torch.Tensor) else np.isfinite(values)
    if not finite.all():
        raise NonFiniteError(
            f"{what} holds NaN or infinity in {int((~finite).sum())} of {math.prod(values.shape)} values; "
            "run the model that made it in torch.float32"
        )


def to_numpy(images: torch.Tensor) -> np.ndarray:
    """(B, C, H, W) of any float type -> float32 (B, H, W, C)."""
    return images.detach().permute(0, 2, 3, 1).float().cpu().numpy()


def to_pil(images: np.ndarray | torch.Tensor) -> list[Image.Image]:
    """A batch (or one array (H, W, C)) in [0, 1] -> 8-bit PIL images; what lies outside is clipped.

    Raises `NonFiniteError` for NaN or infinity and `InputError` for a shape that is no picture.
    """
    array = to_numpy(images) if isinstance(images, torch.Tensor) else np.asarray(images)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"an array of shape {array.shape} is no batch of pictures (B, H, W, C) with 1, 3 or 4 channels"
        )
    check_finite(array)
    levels = (array * 255).round().clip(0, 255).astype(np.uint8)
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in levels]


def to_tensor(images: Pictures) -> torch.Tensor:
    """PIL images (of one size and mode), or arrays in [0, 1] or of bytes -> float32 (B, C, H, W) in [0, 1]."""
    if isinstance(images, torch.Tensor):
        return as_floats(images if images.ndim == 4 else images[None])
    if isinstance(images, np.ndarray):
        array = images[None] if images.ndim == 3 else images
        if array.ndim != 4:
            raise InputError(f"an array of shape {images.shape} is neither (H, W, C) nor (B, H, W, C)")
    else:
        array = pil_to_array([images] if isinstance(images, Image.Image) else list(images))
        array = array[..., None] if array.ndim == 3 else array
    return as_floats(torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))))


def pil_to_array(images: Sequence[Image.Image]) -> np.ndarray:
    """PIL images of one size and mode -> float32 (B, H, W, C), or (B, H, W) of grey ones, in [0, 1]."""
    kinds = sorted({(image.mode, image.size) for image in images})
    if len(kinds) != 1:
        raise InputError(f"pictures of one mode and size make a batch, but these are {kinds}")
    return np.stack([np.array(image).astype(np.float32) / 255.0 for image in images])


def as_floats(values: torch.Tensor) -> torch.Tensor:
    """Bytes as fractions of 255; floats as they are; `InputError` for other types, whose range is anyone's guess."""
    if values.dtype == torch.uint8:
        return values.float() / 255.0
    if not values.is_floating_point():
        raise InputError(f"a picture of type {values.dtype} has no known range; give floats in [0, 1] or uint8")
    return values


def as_output(images: torch.Tensor, output_type: str) -> Any:
    """(B, C, H, W) in [0, 1] as `output_type`: "pil", "np" or "pt" ("latent" leaves it alone)."""
    check_choice("output_type", output_type, OUTPUT_TYPES, InputError)
    if output_type in ("latent", "pt"):
        return images
    array = to_numpy(images)
    return array if output_type == "np" else to_pil(array)


def postprocess(pixels: torch.Tensor, output_type: str = "pil") -> Any:
    """A model's pixels (B, C, H, W) in [-1, 1] as `output_type`; raises `NonFiniteError` rather than show black."""
    if output_type == "latent":
        return pixels
    check_finite(pixels)  # before clipping, which would turn infinity into white
    return as_output((pixels * 0.5 + 0.5).clamp(0, 1), output_type)


def latent_preview(latents: torch.Tensor, scale: int = 8) -> list[Image.Image]:
    """A rough picture of `latents` (B, C, h, w) without a decoder, `scale` times as large.

    Four channels are read as Stable Diffusion's; of others the first three are shown, stretched to the full range.
    """
    check_finite(latents, "the latents")
    values = latents.detach().float().cpu()
    if values.shape[1] == 4:
        colours = torch.einsum("bchw,cr->brhw", values, torch.tensor(_LATENT_COLOURS))
    else:
        first = values[:, : 3 if values.shape[1] >= 3 else 1]
        colours = first / first.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    small = postprocess(colours.clamp(-1, 1), "pil")
    return [one.resize((one.width * scale, one.height * scale), Image.Resampling.BILINEAR) for one in small]


# --- several pictures in one ------------------------------------------------------------------------------------------


def image_grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """The pictures row by row in one (RGB), `columns` beside each other (by default about as many as rows)."""
    if not images:
        raise InputError("there are no pictures to put into a grid")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    width, height = max(one.width for one in images), max(one.height for one in images)
    grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for k, one in enumerate(images):
        grid.paste(one, (k % columns * width, k // columns * height))
    return grid


def make_image_grid(images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """Exactly `rows` × `cols` pictures as one, each made `resize` × `resize` first if given."""
    if len(images) != rows * cols or not images:
        raise InputError(f"a grid of {rows} × {cols} needs {rows * cols} pictures, and there are {len(images)}")
    return image_grid(images if resize is None else [one.resize((resize, resize)) for one in images], cols)


def film_strip(frames: Sequence[Image.Image], labels: Sequence[str] | None = None) -> Image.Image:
    """The frames beside each other with a label under each (by default their numbers); small ones are enlarged."""
    from PIL import ImageDraw, ImageFont

    labels = [str(k) for k in range(len(frames))] if labels is None else labels
    if not frames or len(labels) != len(frames):
        raise InputError(f"a film strip needs frames with one label each; there are {len(frames)} and {len(labels)}")
    font, gap, line = ImageFont.load_default(), 4, 16
    widest = math.ceil(max(font.getlength(label) for label in labels))
    shown = [enlarge(frame, max(widest, 128)) for frame in frames]
    width, height = max(one.width for one in shown), max(one.height for one in shown)
    strip = Image.new("RGB", (len(shown) * (width + gap) + gap, height + 2 * gap + line), "white")
    draw = ImageDraw.Draw(strip)
    for k, (frame, label) in enumerate(zip(shown, labels, strict=True)):
        left = gap + k * (width + gap)
        strip.paste(frame, (left, gap))
        draw.text((left + (width - font.getlength(label)) / 2, height + gap + 2), label, fill="black", font=font)
    return strip


def enlarge(image: Image.Image, width: int) -> Image.Image:
    """`image` at the smallest whole multiple of its size that is at least `width` wide, its pixels kept square."""
    times = math.ceil(width / image.width)
    if times <= 1:
        return image
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


# --- files ------------------------------------------------------------------------------------------------------------


def save_gif(
    frames: Sequence[Image.Image], path: str | os.PathLike, *, duration: int = 200, hold: int = 8, width: int = 128
) -> None:
    """Write an endless GIF, atomically: `duration` ms a frame, the last one `hold` times as long.

    Frames narrower than `width` are enlarged by a whole factor.
    """
    if not frames:
        raise InputError("there are no frames to make a GIF of")
    first, *rest = [enlarge(frame, width) for frame in frames]
    durations = [duration] * len(rest) + [duration * hold]
    write_atomically(
        path,
        lambda temporary: first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False
        ),
    )


def save_png(image: Image.Image, path: str | os.PathLike, settings: Mapping[str, Any] | None = None) -> None:
    """Write a PNG, atomically, with `settings` (what JSON can hold) as a text chunk that `read_settings` reads back."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if settings is not None:
        # Plain ASCII, so that every PNG reader shows it.
        chunks.add_text(_SETTINGS_KEY, json.dumps(to_json(settings)))
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=chunks))


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that a PNG was saved with; `RepositoryError` where the file is no PNG or holds none."""
    shown = os.fspath(path)
    try:
        with Image.open(Path(path)) as image:
            text = getattr(image, "text", {}).get(_SETTINGS_KEY)
    except FileNotFoundError:
        raise RepositoryError(f"there is no file {shown!r}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RepositoryError(f"{shown!r} cannot be read as a PNG ({error})") from error
    if text is None:
        raise RepositoryError(f"{shown!r} holds no settings; only PNG files written by `safelight generate` do")
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise RepositoryError(f"the settings in {shown!r} are not valid JSON ({error})") from error
    if not isinstance(settings, dict):
        raise RepositoryError(f"the settings in {shown!r} are a {type(settings).__name__}, but an object is needed")
    return settings
