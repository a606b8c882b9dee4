"""Stable Diffusion 1 and 2: a convolutional U-Net in the latent space of a VAE, attending to CLIP's view of it.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError, NonFiniteError
from ..image_processor import VaeImageProcessor
from ..images import latent_preview
from ..outputs import Output
from ..schedulers.base import Scheduler
from . import checks
from .denoise import DenoisingPipeline, Trajectory
from .guidance import Guidance, guidance_embedding
from .prompts import encode_clip

logger = logging.getLogger(__name__)


@dataclass
class StableDiffusionPipelineOutput(Output):
    """`images` as `output_type` says, and per image whether the safety checker flagged it (None without a checker)."""

    images: Any
    nsfw_content_detected: list[bool] | None = None


class StableDiffusionPipeline(DenoisingPipeline):
    """Text-to-image with Stable Diffusion 1.x/2.x.

    Components: `vae` (`AutoencoderKL`), `text_encoder` and `tokenizer` (CLIP; this library's or transformers'), `unet`
    (`UNet2DConditionModel`), `scheduler`, and optionally `safety_checker` with its `feature_extractor`.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor", "image_encoder"]  # noqa: RUF012
    _exclude_from_cpu_offload = ["safety_checker"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012
    _conditioning_names = {"prompt_embeds": "encoder_hidden_states"}  # noqa: RUF012

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    safety_checker: Any
    feature_extractor: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ):
        super().__init__()
        if safety_checker is not None and feature_extractor is None:
            raise InputError("safety_checker needs a feature_extractor; pass one, or safety_checker=None")
        if safety_checker is None and requires_safety_checker:
            logger.warning(
                "%s runs without its safety checker: the model's licence asks that unfiltered results are not shown to "
                "the public. requires_safety_checker=False silences this.",
                type(self).__name__,
            )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=_with_latent_size(unet),
            scheduler=_for_latents(scheduler),
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @torch.no_grad()
    def prepare(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        scheduler: Scheduler | None = None,
    ) -> Trajectory:
        """Start a run: encode the prompt, make the plan, draw the first latents.

        `prompt` (one or a list) or `prompt_embeds` (batch, tokens, dim); `height` and `width` in pixels, divisible by
        the VAE's factor, by default the UNet's own size; `guidance_scale` w of classifier-free guidance (≤ 1: none)
        away from `negative_prompt`; `eta` η of DDIM; `timesteps` or `sigmas` replace the scheduler's own grid;
        `generator` as in torch, or `seed` (image k gets seed + k; or a list with one each); `latents`: unit noise
        (batch, channels, height/f, width/f); `clip_skip` leaves out CLIP's last layers; `scheduler` replaces the
        pipeline's own for this run.
        """
        height, width = self._size(height, width)
        images = checks.positive_int("num_images_per_prompt", num_images_per_prompt)
        guidance = Guidance(
            checks.real("guidance_scale", guidance_scale), checks.real("guidance_rescale", guidance_rescale)
        )
        embedded_guidance = self.unet.config.time_cond_proj_dim
        positive, negative = self.encode_prompt(
            prompt,
            num_images_per_prompt=images,
            do_classifier_free_guidance=guidance.active and embedded_guidance is None,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            clip_skip=clip_skip,
        )
        count = len(positive)
        generator = self._generator(seed, generator, count)
        pure, plan = self._plan(
            scheduler,
            num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            eta=checks.real("eta", eta),
            device=self.device,
            generator=generator,
        )
        shape = (count, self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        conditioning = {"encoder_hidden_states": positive}
        if embedded_guidance is not None:
            features = guidance_embedding(guidance.scale, count, embedded_guidance)
            conditioning["timestep_cond"] = features.to(positive.device, positive.dtype)
        return Trajectory(
            scheduler=pure,
            plan=plan,
            sample=self._first_sample(plan, shape, positive.dtype, generator, latents),
            conditioning=conditioning,
            negative=None if negative is None else {**conditioning, "encoder_hidden_states": negative},
            guidance=guidance,
            generator=generator,
            forward_options={"cross_attention_kwargs": cross_attention_kwargs},
            settings={"clip_skip": clip_skip},
        )

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The hidden states of the prompt and of the negative prompt (None without guidance), one row per image.

        Each is (prompts × num_images_per_prompt, tokens, dim). `clip_skip` applies to the prompt alone, as it does
        elsewhere.
        """
        place = torch.device(device) if device is not None else self.device
        given = self._checked_embeds(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
        if prompt_embeds is None:
            prompts = checks.strings("prompt", prompt)
            _check_clip_skip(clip_skip, self.text_encoder)
            prompt_embeds = encode_clip(self.tokenizer, self.text_encoder, prompts, place, clip_skip)
        dtype = given.dtype if self.text_encoder is None and given is not None else self._embeds_dtype()
        positive = prompt_embeds.to(place, dtype).repeat_interleave(num_images_per_prompt, dim=0)
        if not do_classifier_free_guidance:
            return positive, None
        if negative_prompt_embeds is None:
            batch, tokens = prompt_embeds.shape[:2]
            texts = checks.strings("negative_prompt", "" if negative_prompt is None else negative_prompt)
            if len(texts) not in (1, batch):
                raise InputError(f"negative_prompt has {len(texts)} entries, but there are {batch} prompts")
            texts = texts * batch if len(texts) == 1 else texts
            negative_prompt_embeds = encode_clip(self.tokenizer, self.text_encoder, texts, place, max_length=tokens)
        return positive, negative_prompt_embeds.to(place, dtype).repeat_interleave(num_images_per_prompt, dim=0)

    @torch.no_grad()
    def decode(
        self, trajectory: Trajectory, output_type: str = "pil", *, latents: torch.Tensor | None = None
    ) -> Output:
        """The pictures of `trajectory` (or of `latents` in its place), looked at by the safety checker."""
        latents = trajectory.sample if latents is None else latents
        if not torch.isfinite(latents).all():
            raise NonFiniteError("the latents hold NaN or infinity; load the UNet with dtype=torch.float32")
        if output_type == "latent":
            return StableDiffusionPipelineOutput(images=latents)
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels = self.vae.decode(latents, return_dict=False)[0]
        if not torch.isfinite(pixels).all():
            name = type(self.vae).__name__
            raise NonFiniteError(f"{name} gave NaN or infinity; run it in float32: pipe.vae.to(torch.float32)")
        pixels, flagged = self.run_safety_checker(pixels)
        denormalize = [True] * len(pixels) if flagged is None else [not flag for flag in flagged]
        images = self.image_processor.postprocess(pixels, output_type=output_type, do_denormalize=denormalize)
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=flagged)

    def run_safety_checker(
        self, image: torch.Tensor, device: Any = None, dtype: torch.dtype | None = None
    ) -> tuple[Any, list[bool] | None]:
        """Black out pictures that the checker flags: (images, one flag per image), or None in place of the flags."""
        if self.safety_checker is None:
            return image, None
        pictures = self.image_processor.postprocess(image, output_type="pil")
        pixel_values = self.feature_extractor(pictures, return_tensors="pt").pixel_values
        reference = next(self.safety_checker.parameters())
        return self.safety_checker(
            images=image, clip_input=pixel_values.to(device or reference.device, dtype or reference.dtype)
        )

    def preview(self, latents: torch.Tensor) -> list:
        return latent_preview(latents, scale=self.vae_scale_factor)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        size = self.unet.config.sample_size
        default = (size, size) if isinstance(size, int) else tuple(size or (64, 64))
        factor = self.vae_scale_factor
        return (
            checks.divisible("height", default[0] * factor if height is None else height, factor),
            checks.divisible("width", default[1] * factor if width is None else width, factor),
        )

    def _embeds_dtype(self) -> torch.dtype:
        return (self.unet if self.text_encoder is None else self.text_encoder).dtype

    def _checked_embeds(
        self,
        prompt: Any,
        prompt_embeds: torch.Tensor | None,
        negative_prompt: Any,
        negative_prompt_embeds: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Refuse contradictory or misshapen prompt arguments."""
        for name, text, embeds in (
            ("prompt", prompt, prompt_embeds),
            ("negative_prompt", negative_prompt, negative_prompt_embeds),
        ):
            if text is not None and embeds is not None:
                raise InputError(f"{name} and {name}_embeds are both given; give one of them")
            if embeds is not None and (not isinstance(embeds, torch.Tensor) or embeds.ndim != 3):
                found = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
                raise InputError(f"{name}_embeds is {found}; a tensor (batch, tokens, dim) is needed")
        if prompt is None and prompt_embeds is None:
            raise InputError("there is no prompt: give prompt (a string or a list of strings) or prompt_embeds")
        shapes = [tuple(one.shape) for one in (prompt_embeds, negative_prompt_embeds) if one is not None]
        if len(set(shapes)) > 1:
            raise InputError(f"prompt_embeds {shapes[0]} and negative_prompt_embeds {shapes[1]} must be of one shape")
        return prompt_embeds


def _check_clip_skip(clip_skip: Any, text_encoder: Any) -> None:
    layers = text_encoder.config.num_hidden_layers
    if clip_skip is None:
        return
    if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or not 0 <= clip_skip <= layers:
        raise InputError(f"clip_skip is {clip_skip!r}; this text encoder takes 0 to {layers}")


def _for_latents(scheduler: Any) -> Any:
    """`scheduler`, corrected where an old config has settings that latents do not survive."""
    wanted = {"steps_offset": 1, "clip_sample": False}
    config = getattr(scheduler, "config", {})
    wrong = {key: value for key, value in wanted.items() if key in config and config[key] != value}
    if not wrong:
        return scheduler
    logger.warning("%s had an outdated config for Stable Diffusion and now has %s", type(scheduler).__name__, wrong)
    return type(scheduler).from_config(scheduler.config, **wrong)


def _with_latent_size(unet: Any) -> Any:
    """`unet`, with `sample_size` 64 where a file from before version 0.9 gives less."""
    config = getattr(unet, "config", {})
    size, version = config.get("sample_size"), config.get("_diffusers_version")
    if isinstance(size, int) and size < 64 and isinstance(version, str):
        release = [int(part) for part in version.split(".")[:2] if part.isdigit()]
        if release < [0, 9]:
            logger.warning("the UNet's config (written by version %s) says sample_size %d; 64 is used", version, size)
            unet.register_to_config(sample_size=64)
    return unet
