"""Pictures in and out of a VAE: resizing, cropping, and the way from [0, 1] to the [-1, 1] of the networks and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .configuration import ConfigMixin, register_to_config
from .errors import ConfigError, InputError, check_choice
from .images import as_floats, as_output, check_finite, pil_to_array, to_numpy, to_pil

logger = logging.getLogger(__name__)

PIL_INTERPOLATION = {
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
RESIZE_MODES = ("default", "fill", "crop")

Picture = Image.Image | np.ndarray | torch.Tensor
PipelineImageInput = Picture | list[Image.Image] | list[np.ndarray] | list[torch.Tensor]
Values = TypeVar("Values", np.ndarray, torch.Tensor)


def is_valid_image(image: Any) -> bool:
    """Whether `image` is one picture: PIL, or an array or tensor of 2 or 3 dimensions."""
    return isinstance(image, Image.Image) or (isinstance(image, np.ndarray | torch.Tensor) and image.ndim in (2, 3))


def is_valid_image_imagelist(images: Any) -> bool:
    """Whether `images` is a picture, a list of them, or a batch of 4 dimensions."""
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return True
    return is_valid_image(images) or (isinstance(images, list) and all(is_valid_image(image) for image in images))


class VaeImageProcessor(ConfigMixin):
    """Brings pictures to a VAE's size and range (`preprocess`) and its output back (`postprocess`).

    Sizes are rounded down to a multiple of `vae_scale_factor`. A tensor with `vae_latent_channels` channels is taken
    for latents and passes through `preprocess` unchanged.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: int | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ):
        check_choice("resample", resample, PIL_INTERPOLATION)
        if do_convert_rgb and do_convert_grayscale:
            raise ConfigError("do_convert_rgb and do_convert_grayscale are both set; set one of them")

    # Conversions, as scripts call them.

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
        """An array (B, H, W, C) or (H, W, C) in [0, 1] -> PIL images; raises `NonFiniteError` for NaN."""
        return to_pil(images)

    @staticmethod
    def pil_to_numpy(images: list[Image.Image] | Image.Image) -> np.ndarray:
        """PIL images of one size -> float32 (B, H, W, C) in [0, 1]; (B, H, W) where they are grey."""
        return pil_to_array(images if isinstance(images, list) else [images])

    @staticmethod
    def numpy_to_pt(images: np.ndarray) -> torch.Tensor:
        """(B, H, W, C), or (B, H, W) of grey pictures -> (B, C, H, W)."""
        return torch.from_numpy((images[..., None] if images.ndim == 3 else images).transpose(0, 3, 1, 2))

    @staticmethod
    def pt_to_numpy(images: torch.Tensor) -> np.ndarray:
        """(B, C, H, W) -> float32 (B, H, W, C)."""
        return to_numpy(images)

    @staticmethod
    def normalize(images: Values) -> Values:
        """[0, 1] -> [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: torch.Tensor) -> torch.Tensor:
        """[-1, 1] -> [0, 1], clipped."""
        return (images * 0.5 + 0.5).clamp(0, 1)

    @staticmethod
    def convert_to_rgb(image: Image.Image) -> Image.Image:
        return image.convert("RGB")

    @staticmethod
    def convert_to_grayscale(image: Image.Image) -> Image.Image:
        return image.convert("L")

    @staticmethod
    def binarize(image: Values) -> Values:
        """0 below one half, 1 from there on; in place."""
        image[image < 0.5] = 0
        image[image >= 0.5] = 1
        return image

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """Gaussian blur of radius `blur_factor` pixels."""
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    # Sizes.

    def get_default_height_width(
        self, image: Picture, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """The size asked for, or else that of `image`, rounded down to a multiple of the VAE's factor.

        `image`: PIL, an array (B, H, W) or (B, H, W, C), or a tensor (B, C, H, W).
        """
        if isinstance(image, Image.Image):
            own = (image.height, image.width)
        else:
            own = tuple(image.shape[2:4] if isinstance(image, torch.Tensor) else image.shape[1:3])
        factor = self.config.vae_scale_factor
        height, width = (found if asked is None else asked for asked, found in zip((height, width), own, strict=True))
        if height < factor or width < factor:
            raise InputError(f"a picture of {width} × {height} pixels is smaller than the VAE's factor, {factor}")
        return height - height % factor, width - width % factor

    def resize(self, image: Picture, height: int, width: int, resize_mode: str = "default") -> Picture:
        """`image` (PIL, an array (B, H, W, C) or a tensor (B, C, H, W)) at `height` × `width`.

        `resize_mode`: "default" stretches; "fill" keeps the aspect ratio and smears the borders outwards; "crop" keeps
        it and cuts off what sticks out. The last two take PIL images only. Arrays and tensors take the nearest pixel.
        """
        check_choice("resize_mode", resize_mode, RESIZE_MODES, InputError)
        if isinstance(image, Image.Image):
            if resize_mode == "default":
                filter_ = PIL_INTERPOLATION[self.config.resample]
                return image.resize((width, height), resample=filter_, reducing_gap=self.config.reducing_gap)
            return self._fit(image, width, height, cover=resize_mode == "crop")
        if resize_mode != "default":
            raise InputError(
                f"resize_mode is {resize_mode!r}, which works on PIL images; this is {type(image).__name__}"
            )
        if isinstance(image, np.ndarray):
            return to_numpy(F.interpolate(self.numpy_to_pt(image), size=(height, width)))
        return F.interpolate(image, size=(height, width))

    def _fit(self, image: Image.Image, width: int, height: int, cover: bool) -> Image.Image:
        """`image` centred, its aspect ratio kept: covering all of the canvas, or inside it with its borders smeared."""
        ratio, own = width / height, image.width / image.height
        by_width = ratio > own if cover else ratio < own
        size = (
            (width, image.height * width // image.width) if by_width else (image.width * height // image.height, height)
        )
        scaled = image.resize(size, resample=PIL_INTERPOLATION[self.config.resample])
        left, top = width // 2 - scaled.width // 2, height // 2 - scaled.height // 2
        canvas = Image.new("RGB", (width, height))
        canvas.paste(scaled, (left, top))
        # Boxes of no height or width: the resampling filter sees only the outermost pixels.
        if not cover and by_width and top > 0:
            for edge, at in ((0, 0), (scaled.height, top + scaled.height)):
                canvas.paste(scaled.resize((width, top), box=(0, edge, width, edge)), (0, at))
        elif not cover and ratio > own and left > 0:
            for edge, at in ((0, 0), (scaled.width, left + scaled.width)):
                canvas.paste(scaled.resize((left, height), box=(edge, 0, edge, height)), (at, 0))
        return canvas

    @staticmethod
    def get_crop_region(mask_image: Image.Image, width: int, height: int, pad: int = 0) -> tuple[int, int, int, int]:
        """The box (left, top, right, bottom) around all that is not black in the mask, `pad` pixels wider on each side.

        It is grown to the aspect ratio of `width` × `height`, as far as the mask's own size allows.
        """
        rows, columns = np.nonzero(np.asarray(mask_image.convert("L")))
        if not len(rows):
            raise InputError("the mask is black everywhere; paint what is to change in white")
        limit_x, limit_y = mask_image.size
        x1, x2 = max(int(columns.min()) - pad, 0), min(int(columns.max()) + 1 + pad, limit_x)
        y1, y2 = max(int(rows.min()) - pad, 0), min(int(rows.max()) + 1 + pad, limit_y)
        ratio = width / height
        if (x2 - x1) / (y2 - y1) > ratio:
            y1, y2 = _grow(y1, y2, (x2 - x1) / ratio, limit_y)
        else:
            x1, x2 = _grow(x1, x2, (y2 - y1) * ratio, limit_x)
        return x1, y1, x2, y2

    # The two ways.

    def preprocess(
        self,
        image: PipelineImageInput,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> torch.Tensor:
        """Pictures in [0, 1] (or bytes) -> a tensor (B, C, H, W) in [-1, 1] for the VAE.

        `image`: PIL, an array (H, W, C) or (B, H, W, C), a tensor (C, H, W) or (B, C, H, W), or a list of one kind;
        `crops_coords`: (left, top, right, bottom) cut out of PIL images first. Values below 0 are taken to be in
        [-1, 1] already, with a warning. Raises `InputError` for anything that is no picture, and for NaN or infinity.
        """
        listed = self._as_list(image)
        if isinstance(listed[0], Image.Image):
            batch = self._from_pil(listed, height, width, resize_mode, crops_coords)
        else:
            batch = self._from_arrays(listed)
            is_latent = isinstance(listed[0], torch.Tensor) and batch.shape[1] == self.config.vae_latent_channels
            if is_latent:
                return batch
            if self.config.do_resize:
                batch = self.resize(batch, *self.get_default_height_width(batch, height, width))  # type: ignore[assignment]
        if self.config.do_normalize:
            if batch.min() < 0:
                logger.warning(
                    "the picture has values from %.3g to %.3g and is taken to be in [-1, 1]; [0, 1] is expected",
                    batch.min(),
                    batch.max(),
                )
            else:
                batch = self.normalize(batch)
        return self.binarize(batch) if self.config.do_binarize else batch

    def _as_list(self, image: Any) -> list[Any]:
        if self.config.do_convert_grayscale and isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 3:
            # (B, H, W), or one picture with its only channel where it belongs.
            if isinstance(image, torch.Tensor):
                image = image[:, None]
            else:
                image = image[None] if image.shape[-1] == 1 else image[..., None]
        listed = list(image) if isinstance(image, list | tuple) else [image]
        if not listed:
            raise InputError("image is an empty list; give at least one picture")
        for one in listed:
            batch = isinstance(one, np.ndarray | torch.Tensor) and one.ndim == 4
            if not (batch or is_valid_image(one)):
                found = f"{type(one).__name__} of shape {tuple(one.shape)}" if hasattr(one, "shape") else repr(one)
                raise InputError(f"image is {found}; a PIL image, array or tensor, or a list of one kind, is needed")
        kinds = {Image.Image if isinstance(one, Image.Image) else type(one) for one in listed}
        if len(kinds) != 1:
            raise InputError(
                f"image is a list of {' and '.join(sorted(kind.__name__ for kind in kinds))}; give one kind"
            )
        return listed

    def _from_pil(
        self,
        images: list[Image.Image],
        height: int | None,
        width: int | None,
        resize_mode: str,
        crop: tuple[int, int, int, int] | None,
    ) -> torch.Tensor:
        if crop is not None:
            images = [image.crop(crop) for image in images]
        if self.config.do_resize:
            size = self.get_default_height_width(images[0], height, width)
            images = [self.resize(image, *size, resize_mode=resize_mode) for image in images]  # type: ignore[misc]
        if self.config.do_convert_rgb:
            images = [self.convert_to_rgb(image) for image in images]
        elif self.config.do_convert_grayscale:
            images = [self.convert_to_grayscale(image) for image in images]
        return self.numpy_to_pt(pil_to_array(images))

    def _from_arrays(self, images: Sequence[np.ndarray] | Sequence[torch.Tensor]) -> torch.Tensor:
        """Arrays or tensors, each a picture or a batch, as one batch (B, C, H, W)."""
        shapes = sorted({tuple(image.shape[-3:]) for image in images})
        if len(shapes) != 1:
            raise InputError(f"pictures of one shape make a batch, but these are {shapes}")
        join = torch if isinstance(images[0], torch.Tensor) else np
        batch = join.concatenate(images) if images[0].ndim == 4 else join.stack(images)
        if isinstance(batch, np.ndarray):
            batch = self.numpy_to_pt(batch)
        elif batch.ndim == 3:
            batch = batch[:, None]
        batch = as_floats(batch)
        if not torch.isfinite(batch).all():
            raise InputError("image holds NaN or infinity")
        return batch

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> Any:
        """The VAE's (B, C, H, W) as `output_type`: "pil", "np", "pt", or "latent" (unchanged).

        `do_denormalize` says for each picture whether it is in [-1, 1] (by default all are, if `do_normalize`). Raises
        `NonFiniteError` for NaN or infinity.
        """
        if not isinstance(image, torch.Tensor):
            raise InputError(f"postprocess takes a tensor (B, C, H, W), not {type(image).__name__}")
        if output_type == "latent":
            return image
        if do_denormalize is None:
            do_denormalize = [self.config.do_normalize] * len(image)
        if len(do_denormalize) != len(image):
            raise InputError(f"do_denormalize has {len(do_denormalize)} entries, but there are {len(image)} pictures")
        check_finite(image)  # before clipping, which would turn infinity into white
        pictures = [self.denormalize(one) if wanted else one for one, wanted in zip(image, do_denormalize, strict=True)]
        return as_output(torch.stack(pictures), output_type)

    def apply_overlay(
        self,
        mask: Image.Image,
        init_image: Image.Image,
        image: Image.Image,
        crop_coords: tuple[int, int, int, int] | None = None,
    ) -> Image.Image:
        """`image` where `mask` is white, `init_image` where it is black.

        `crop_coords` (left, top, right, bottom): where in `init_image` the picture belongs.
        """
        from PIL import ImageChops

        keep = ImageChops.invert(mask.convert("L"))
        # Blending is done with premultiplied alpha ("RGBa"), so that soft edges do not darken.
        kept = Image.new("RGBa", init_image.size)
        kept.paste(init_image.convert("RGBA").convert("RGBa"), mask=keep)
        if crop_coords is not None:
            left, top, right, bottom = crop_coords
            canvas = Image.new("RGBA", init_image.size)
            canvas.paste(self._fit(image, right - left, bottom - top, cover=True), (left, top))
            image = canvas.convert("RGB")
        result = image.convert("RGBA")
        result.alpha_composite(kept.convert("RGBA"))
        return result.convert("RGB")


def _grow(start: int, stop: int, wanted: float, limit: int) -> tuple[int, int]:
    """The interval widened evenly to `wanted`, shifted and, if need be, cut to lie within 0 … `limit`."""
    extra = int(wanted - (stop - start))
    start, stop = start - extra // 2, stop + extra - extra // 2
    shift = max(stop - limit, 0)
    start, stop = start - shift, stop - shift
    shift = max(-start, 0)
    return start + shift, min(stop + shift, limit)
