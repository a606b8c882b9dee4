"""Arrays and tensors as PIL images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..image_processor import PIL_INTERPOLATION
from ..images import make_image_grid, postprocess
from ..images import to_pil as numpy_to_pil

if TYPE_CHECKING:
    import torch
    from PIL import Image


def pt_to_pil(images: torch.Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] -> PIL images; raises `NonFiniteError` for NaN or infinity."""
    return postprocess(images, "pil")


__all__ = ["PIL_INTERPOLATION", "make_image_grid", "numpy_to_pil", "pt_to_pil"]
