"""Helpers under the names and in the places that scripts import them from."""

from __future__ import annotations

from ..image_processor import PIL_INTERPOLATION
from ..images import make_image_grid
from ..outputs import Output as BaseOutput
from . import logging
from .export_utils import export_to_gif
from .import_utils import (
    is_accelerate_available,
    is_bitsandbytes_available,
    is_peft_available,
    is_scipy_available,
    is_tensorboard_available,
    is_torch_available,
    is_torchvision_available,
    is_transformers_available,
    is_wandb_available,
    is_xformers_available,
)
from .loading_utils import load_image
from .logging import get_logger
from .pil_utils import numpy_to_pil, pt_to_pil

# Names of the files in a repository.
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.bin"
SAFETENSORS_WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

__all__ = [
    "CONFIG_NAME",
    "PIL_INTERPOLATION",
    "SAFETENSORS_WEIGHTS_NAME",
    "WEIGHTS_NAME",
    "BaseOutput",
    "export_to_gif",
    "get_logger",
    "is_accelerate_available",
    "is_bitsandbytes_available",
    "is_peft_available",
    "is_scipy_available",
    "is_tensorboard_available",
    "is_torch_available",
    "is_torchvision_available",
    "is_transformers_available",
    "is_wandb_available",
    "is_xformers_available",
    "load_image",
    "logging",
    "make_image_grid",
    "numpy_to_pil",
    "pt_to_pil",
]
