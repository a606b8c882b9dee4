"""Pixel-space diffusion without a prompt: DDPM and DDIM sampling of a `UNet2DModel`, by class label if any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError, NonFiniteError, nearest
from ..images import postprocess
from ..outputs import Output
from ..schedulers.base import Scheduler
from ..schedulers.ddim import DDIMScheduler
from . import checks
from .denoise import DenoisingPipeline, Trajectory
from .guidance import Guidance

logger = logging.getLogger(__name__)


@dataclass
class ImagePipelineOutput(Output):
    """`images`: a list of PIL images, or an array or tensor as `output_type` says."""

    images: Any


class UnconditionalPipeline(DenoisingPipeline):
    """The family behind `DDPMPipeline` and `DDIMPipeline`.

    `id2label` names the classes of a class-conditional UNet. Where the UNet has one class more than there are names,
    the extra one is the "no class" that guidance needs.
    """

    unet: Any
    scheduler: Any
    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any, id2label: dict[str, str] | None = None):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        if id2label is not None:
            self.register_to_config(id2label=id2label)

    def _prepare(
        self,
        batch_size: int,
        generator: Any,
        seed: Any,
        scheduler: Scheduler | None,
        num_inference_steps: int,
        class_labels: Any,
        guidance_scale: float,
        latents: torch.Tensor | None,
        **solver_options: Any,
    ) -> Trajectory:
        labels = self._label_ids(class_labels)
        count = checks.positive_int("batch_size", batch_size)
        if labels is not None:
            if count not in (1, len(labels)):
                raise InputError(f"batch_size is {count}, but {len(labels)} class_labels are given")
            count = len(labels)
        generator = self._generator(seed, generator, count)
        pure, plan = self._plan(
            scheduler, num_inference_steps, device=self.device, generator=generator, **solver_options
        )
        size = self.unet.config.sample_size
        if size is None:
            raise InputError("the UNet's config has no sample_size; build it with sample_size=…")
        height, width = (size, size) if isinstance(size, int) else size
        shape = (count, self.unet.config.in_channels, height, width)
        conditioning = {} if labels is None else {"class_labels": torch.tensor(labels, device=self.device)}
        guidance = Guidance(checks.real("guidance_scale", guidance_scale))
        return Trajectory(
            scheduler=pure,
            plan=plan,
            sample=self._first_sample(plan, shape, self.unet.dtype, generator, latents),
            conditioning=conditioning,
            negative=self._no_class(conditioning) if guidance.active else None,
            guidance=guidance,
            generator=generator,
        )

    def _label_ids(self, class_labels: Any) -> list[int] | None:
        classes = self.unet.config.num_class_embeds
        names = {int(key): name for key, name in (self.config.get("id2label") or {}).items()}
        if classes is None:
            if class_labels is not None:
                raise InputError(f"class_labels is {class_labels!r}, but this UNet is not class-conditional")
            return None
        valid = list(names.values()) or [str(k) for k in range(classes)]
        if class_labels is None:
            raise InputError(
                f"this UNet is class-conditional: pass class_labels=, one per image, of {', '.join(valid)}"
            )
        if isinstance(class_labels, torch.Tensor):
            class_labels = class_labels.reshape(-1).tolist()
        several = isinstance(class_labels, Sequence) and not isinstance(class_labels, str)
        by_name = {name.casefold(): key for key, name in names.items()}
        ids = []
        for label in class_labels if several else [class_labels]:
            number = by_name.get(label.strip().casefold()) if isinstance(label, str) else label
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < classes:
                raise InputError(f"class label {label!r} is not known; {nearest(str(label), valid)}")
            ids.append(number)
        if not ids:
            raise InputError("class_labels is empty; give at least one label")
        return ids

    def _no_class(self, conditioning: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names, classes = self.config.get("id2label") or {}, self.unet.config.num_class_embeds
        if not conditioning or classes != len(names) + 1:
            raise InputError("guidance_scale above 1 needs a UNet that was trained with a class for “no label”")
        return {"class_labels": torch.full_like(conditioning["class_labels"], classes - 1)}

    @torch.no_grad()
    def decode(
        self, trajectory: Trajectory, output_type: str = "pil", *, latents: torch.Tensor | None = None
    ) -> Output:
        """The pictures of `trajectory` (or of `latents`, pixels in [-1, 1])."""
        pixels = trajectory.sample if latents is None else latents
        if not torch.isfinite(pixels).all():
            raise NonFiniteError("the picture holds NaN or infinity; load the UNet with dtype=torch.float32")
        return ImagePipelineOutput(images=postprocess(pixels, output_type))

    def preview(self, latents: torch.Tensor) -> list:
        return postprocess(latents, "pil")


class DDPMPipeline(UnconditionalPipeline):
    """Ancestral sampling of a pixel-space UNet (Ho et al. 2020, arXiv:2006.11239, algorithm 2).

    `unet`: `UNet2DModel`; `scheduler`: any scheduler; `id2label`: names of the classes, by their number.
    """

    @torch.no_grad()
    def prepare(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 1000,
        *,
        seed: int | Sequence[int] | None = None,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        latents: torch.Tensor | None = None,
        timesteps: Sequence[int] | None = None,
        scheduler: Scheduler | None = None,
    ) -> Trajectory:
        """Start a run of `batch_size` images (one per label where `class_labels`, ints or names, are given).

        `seed`: image k gets seed + k, or a list with one each. `scheduler` replaces the pipeline's own for this run.
        """
        return self._prepare(
            batch_size, generator, seed, scheduler, num_inference_steps, class_labels, guidance_scale, latents,
            timesteps=timesteps,
        )  # fmt: skip


class DDIMPipeline(UnconditionalPipeline):
    """Deterministic (η = 0) to ancestral (η = 1) sampling of a pixel-space UNet (Song et al. 2021, arXiv:2010.02502).

    `unet`: `UNet2DModel`; `scheduler`: converted to `DDIMScheduler`; `id2label`: names of the classes, by their number.
    """

    def __init__(self, unet: Any, scheduler: Any, id2label: dict[str, str] | None = None):
        super().__init__(unet, DDIMScheduler.from_config(scheduler.config), id2label)

    @torch.no_grad()
    def prepare(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        latents: torch.Tensor | None = None,
        scheduler: Scheduler | None = None,
    ) -> Trajectory:
        """Start a run of `batch_size` images; `eta` in [0, 1] is η, and the rest is as for `DDPMPipeline`."""
        if not 0 <= checks.real("eta", eta) <= 1:
            logger.warning("eta is %s; between 0 (DDIM) and 1 (DDPM) is meant", eta)
        return self._prepare(
            batch_size, generator, seed, scheduler, num_inference_steps, class_labels, guidance_scale, latents,
            eta=eta, use_clipped_model_output=use_clipped_model_output,
        )  # fmt: skip
