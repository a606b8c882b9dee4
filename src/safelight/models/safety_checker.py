"""The filter of Stable Diffusion 1 and 2: pictures near the embeddings of unwanted concepts are blacked out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..configuration import register_to_config
from ..errors import InputError
from ..nn.clip import CLIPVisionTransformer
from .transformers_layout import TransformersModel

logger = logging.getLogger(__name__)


class CLIPVisionModel(nn.Module):
    """The image tower one name deeper, as the published files spell its keys."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        known = inspect.signature(CLIPVisionTransformer.__init__).parameters
        self.vision_model = CLIPVisionTransformer(**{name: value for name, value in config.items() if name in known})

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.vision_model(pixels)


class StableDiffusionSafetyChecker(TransformersModel):
    """Compares CLIP's embedding of a picture with 17 unwanted concepts and 3 that call for special care.

    A concept is found where the cosine exceeds its threshold (`…_embeds_weights`); a special-care concept that is found
    lowers the other 17 thresholds by 0.01 (Rando et al. 2022, arXiv:2210.04610, describe the rule). The constructor's
    arguments are the entries of a CLIP config; only `vision_config` and `projection_dim` matter.
    """

    _model_type = "clip"
    _old_keys = ((r"^vision_model\.(?!vision_model\.)", "vision_model.vision_model."),)
    _ignored_keys = (r"embeddings\.position_ids$",)

    @register_to_config
    def __init__(
        self,
        text_config: Mapping[str, Any] | None = None,
        vision_config: Mapping[str, Any] | None = None,
        projection_dim: int = 512,
        logit_scale_init_value: float = 2.6592,
        initializer_factor: float = 1.0,
    ):
        super().__init__()
        self.vision_model = CLIPVisionModel(vision_config or {})
        width = self.vision_model.vision_model.post_layernorm.normalized_shape[0]
        self.visual_projection = nn.Linear(width, projection_dim, bias=False)
        for name, count in (("concept_embeds", 17), ("special_care_embeds", 3)):
            self.register_parameter(name, nn.Parameter(torch.ones(count, projection_dim), requires_grad=False))
            self.register_parameter(f"{name}_weights", nn.Parameter(torch.ones(count), requires_grad=False))

    @classmethod
    def from_config(cls, config: Any = None, **overrides: Any) -> Any:
        """Build from a CLIP config; an old one's `vision_config_dict` wins over its `vision_config`."""
        if isinstance(config, Mapping) and config.get("vision_config_dict"):
            config = {
                **config,
                "vision_config": {**(config.get("vision_config") or {}), **config["vision_config_dict"]},
            }
        return super().from_config(config, **overrides)

    @torch.no_grad()
    def forward(self, clip_input: torch.Tensor, images: Any) -> tuple[Any, list[bool]]:
        """Black out what is flagged: `images` (array, tensor or list of either), and one bool per picture.

        `clip_input` are the same pictures as `CLIPImageProcessor` returns them, (B, 3, size, size). The images passed
        in are left as they are. Raises `InputError` where their numbers differ.
        """
        if len(images) != len(clip_input):
            raise InputError(f"there are {len(images)} images, but clip_input holds {len(clip_input)}")
        _, pooled = self.vision_model(clip_input)
        embedding = self.visual_projection(pooled)
        care = self._excess(embedding, "special_care_embeds")
        care_found = (_thousandths(care) > 0).any(dim=1, keepdim=True)
        concepts = self._excess(embedding, "concept_embeds") + 0.01 * care_found
        flagged = (_thousandths(concepts) > 0).any(dim=1).tolist()
        if any(flagged):
            logger.warning(
                "The safety checker flagged %d of %d images, which are returned black; try another prompt or seed",
                sum(flagged),
                len(flagged),
            )
        return _blacked_out(images, flagged), flagged

    def _excess(self, embedding: torch.Tensor, name: str) -> torch.Tensor:
        """Cosine minus threshold, (B, concepts), in float32 on the CPU."""
        concepts, thresholds = self.get_parameter(name), self.get_parameter(f"{name}_weights")
        cosine = F.normalize(embedding) @ F.normalize(concepts).T
        return cosine.float().cpu() - thresholds.float().cpu()


def _thousandths(scores: torch.Tensor) -> torch.Tensor:
    """The published rule compares scores rounded to three decimals."""
    return (scores * 1000).round()


def _zeros_like(image: Any) -> Any:
    return torch.zeros_like(image) if isinstance(image, torch.Tensor) else np.zeros_like(image)


def _blacked_out(images: Any, flagged: list[bool]) -> Any:
    if not any(flagged):
        return images
    if isinstance(images, torch.Tensor):
        keep = torch.tensor(flagged, device=images.device).logical_not()
        return torch.where(keep.view(-1, *[1] * (images.ndim - 1)), images, torch.zeros_like(images))
    black = [_zeros_like(image) if hit else image for image, hit in zip(images, flagged, strict=True)]
    return np.stack(black) if isinstance(images, np.ndarray) else black
