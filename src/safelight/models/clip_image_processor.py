"""What CLIP's image tower is shown: pictures resized, cropped and normalised as in its training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from ..configuration import check_known, init_parameters, register_to_config
from ..errors import ConfigError, InputError, check_choice
from ..outputs import Batch
from .transformers_layout import TransformersConfig

T = TypeVar("T", bound="CLIPImageProcessor")


class CLIPImageProcessor(TransformersConfig):
    """Pictures -> normalised pixels (B, 3, height, width), as transformers' processor on Pillow computes them.

    The constructor's arguments are the entries of `preprocessor_config.json`. `size` is `{"shortest_edge": n}` (or n)
    or `{"height": h, "width": w}`, `crop_size` the latter or a number; `resample` is one of Pillow's filters
    (3: bicubic). Raises `ConfigError` for sizes of another kind.
    """

    config_name = "preprocessor_config.json"

    @register_to_config
    def __init__(
        self,
        do_resize: bool = True,
        size: Mapping[str, int] | int | None = None,
        resample: int = 3,
        do_center_crop: bool = True,
        crop_size: Mapping[str, int] | int | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        do_convert_rgb: bool = True,
    ):
        size = {"shortest_edge": size or 224} if size is None or isinstance(size, int) else dict(size)
        if set(size) not in ({"shortest_edge"}, {"height", "width"}):
            raise ConfigError(f'size is {size}; {{"shortest_edge": n}} or {{"height": h, "width": w}} is needed')
        crop = crop_size or 224
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop)
        if set(crop) != {"height", "width"}:
            raise ConfigError(f'crop_size is {crop}; {{"height": h, "width": w}} is needed')
        # The mean and deviation of the pictures that OpenAI's CLIP was trained on.
        mean = list(image_mean or (0.48145466, 0.4578275, 0.40821073))
        std = list(image_std or (0.26862954, 0.26130258, 0.27577711))
        self.register_to_config(size=size, crop_size=crop, image_mean=mean, image_std=std)

    @classmethod
    def from_pretrained(cls: type[T], pretrained_model_name_or_path: str | os.PathLike, **options: Any) -> T:
        """Read `preprocessor_config.json`; options as for models, and constructor arguments that override it."""
        own = {name: options.pop(name) for name in list(options) if name in init_parameters(cls)}
        return cls.from_config(cls.load_config(pretrained_model_name_or_path, **options), **own)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `preprocessor_config.json`."""
        self.save_config(save_directory)

    def _identity(self) -> dict[str, Any]:
        return {"image_processor_type": "CLIPImageProcessor"}

    def __call__(self, images: Any, return_tensors: str | None = None, **options: Any) -> Batch:
        """`pixel_values` of one picture or a list: PIL images, or arrays (H, W, 3) of uint8 or of floats in [0, 1].

        `return_tensors` is None (a list of arrays), "pt" or "np". Raises `InputError` for anything else.
        """
        check_known(type(self).__name__, options, ())
        several = isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)
        pixels = [self._pixels(image) for image in (images if several else [images])]
        if return_tensors is None:
            return Batch(pixel_values=pixels)
        check_choice("return_tensors", return_tensors, ("pt", "np"), InputError)
        if len({array.shape for array in pixels}) != 1:
            raise InputError("pictures of several sizes do not fit one tensor; leave do_resize and do_center_crop on")
        stacked = np.stack(pixels)
        return Batch(pixel_values=torch.from_numpy(stacked) if return_tensors == "pt" else stacked)

    preprocess = __call__

    def _pixels(self, image: Any) -> np.ndarray:
        config = self.config
        picture = _picture(image)
        if config.do_convert_rgb:
            picture = _on_white(picture)
        if config.do_resize:
            picture = picture.resize(self._resized(picture.width, picture.height), resample=config.resample)
        pixels = np.array(picture)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if config.do_center_crop:
            pixels = _center_crop(pixels, config.crop_size["height"], config.crop_size["width"])
        if config.do_rescale:
            pixels = (pixels.astype(np.float64) * config.rescale_factor).astype(np.float32)
        if config.do_normalize:
            mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (config.image_mean, config.image_std))
            pixels = (pixels.astype(np.float32) - mean) / std
        return pixels

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        size = self.config.size
        if "height" in size:
            return size["width"], size["height"]
        edge, short, long = size["shortest_edge"], min(width, height), max(width, height)
        other = int(edge * long / short)
        return (edge, other) if width <= height else (other, edge)


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[-1] != 3:
        what = f"an array of shape {array.shape}" if isinstance(array, np.ndarray) else type(image).__name__
        raise InputError(f"a picture must be a PIL image or an array (height, width, 3), not {what}")
    if array.dtype != np.uint8:
        array = (array.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(array)


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB, what is transparent over white."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of (channels, H, W); a picture smaller than the crop is surrounded by zeros."""
    for axis, target in ((1, height), (2, width)):
        missing = max(0, target - pixels.shape[axis])
        before = -(-missing // 2)
        padding = [(0, 0)] * 3
        padding[axis] = (before, missing - before)
        pixels = np.pad(pixels, padding)
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]
