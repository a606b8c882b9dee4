"""Whether optional packages are installed, without importing them."""

from __future__ import annotations

import functools
import importlib.util


@functools.cache
def is_available(package: str) -> bool:
    """Whether `package` could be imported."""
    return importlib.util.find_spec(package) is not None


is_accelerate_available = functools.partial(is_available, "accelerate")
is_bitsandbytes_available = functools.partial(is_available, "bitsandbytes")
is_peft_available = functools.partial(is_available, "peft")
is_scipy_available = functools.partial(is_available, "scipy")
is_tensorboard_available = functools.partial(is_available, "tensorboard")
is_torch_available = functools.partial(is_available, "torch")
is_torchvision_available = functools.partial(is_available, "torchvision")
is_transformers_available = functools.partial(is_available, "transformers")
is_wandb_available = functools.partial(is_available, "wandb")
is_xformers_available = functools.partial(is_available, "xformers")
