"""Safelight: pretrained diffusion models, loaded, sampled, taken apart and trained.

Public names are imported on first use (PEP 562), so `import safelight` costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

__version__ = "0.1.0"

# Module -> the public names it defines. `safelight.X` imports only X's module.
_EXPORTS = {
    "configuration": ("ConfigMixin", "register_to_config"),
    "errors": (
        "ConfigError",
        "FrozenConfigError",
        "InputError",
        "MissingDependencyError",
        "NonFiniteError",
        "RepositoryError",
        "SafelightError",
        "UnknownArgumentError",
        "UnsafeFileError",
        "WeightsError",
    ),
    "image_processor": ("VaeImageProcessor",),
    "models.autoencoder_kl": ("AutoencoderKL",),
    "models.base": ("ModelMixin",),
    "models.clip_image_processor": ("CLIPImageProcessor",),
    "models.safety_checker": ("StableDiffusionSafetyChecker",),
    "models.text.clip": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "models.text.tokenizers": ("CLIPTokenizer",),
    "models.unet_2d": ("UNet2DModel",),
    "models.unet_2d_condition": ("UNet2DConditionModel",),
    "optimization": (
        "get_constant_schedule",
        "get_constant_schedule_with_warmup",
        "get_cosine_schedule_with_warmup",
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        "get_linear_schedule_with_warmup",
        "get_polynomial_decay_schedule_with_warmup",
        "get_scheduler",
    ),
    "pipelines.base": ("DiffusionPipeline",),
    "pipelines.stable_diffusion": ("StableDiffusionPipeline",),
    "pipelines.unconditional": ("DDIMPipeline", "DDPMPipeline"),
    "schedulers.base": ("SchedulerMixin",),
    "schedulers.consistency_models": ("CMStochasticIterativeScheduler",),
    "schedulers.ddim": ("DDIMInverseScheduler", "DDIMScheduler"),
    "schedulers.ddpm": ("DDPMScheduler", "UnCLIPScheduler"),
    "schedulers.deis": ("DEISMultistepScheduler",),
    "schedulers.dpm_multistep": ("DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler"),
    "schedulers.dpm_sde": ("DPMSolverSDEScheduler",),
    "schedulers.edm": (
        "CosineDPMSolverMultistepScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
    ),
    "schedulers.dpm_singlestep": ("DPMSolverSinglestepScheduler",),
    "schedulers.euler": (
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "LMSDiscreteScheduler",
    ),
    "schedulers.flow_match": ("FlowMatchEulerDiscreteScheduler",),
    "schedulers.flow_match_heun": ("FlowMatchHeunDiscreteScheduler",),
    "schedulers.flow_match_lcm": ("FlowMatchLCMScheduler",),
    "schedulers.lcm": ("LCMScheduler", "TCDScheduler"),
    "schedulers.ipndm": ("IPNDMScheduler",),
    "schedulers.pndm": ("PNDMScheduler",),
    "schedulers.repaint": ("RePaintScheduler",),
    "schedulers.sa_solver": ("SASolverScheduler",),
    "schedulers.scm": ("SCMScheduler",),
    "schedulers.score_sde_ve": ("ScoreSdeVeScheduler",),
    "schedulers.two_evaluations": (
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
    ),
    "schedulers.unipc": ("UniPCMultistepScheduler",),
    "training_utils": ("EMAModel",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'safelight' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def names_below(package: str) -> Callable[[str], Any]:
    """A `__getattr__` for a subpackage: it has the public names whose modules lie in it."""
    inside = package.removeprefix(f"{__name__}.") + "."

    def getattr_(name: str) -> Any:
        if not _HOME.get(name, "").startswith(inside):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return __getattr__(name)

    return getattr_


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
