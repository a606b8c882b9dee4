"""Embeddings of boxes with what belongs in them (Li et al. 2023, "GLIGEN", arXiv:2301.07093, section 4.1)."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import InputError

_WIDTH = 512
_FREQUENCIES = 8


def _mlp(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim_in, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, dim_out)
    )


def box_embedding(boxes: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of corners in [0, 1]: (B, boxes, 4) -> (B, boxes, 64)."""
    steps = torch.arange(_FREQUENCIES, device=boxes.device, dtype=boxes.dtype) / _FREQUENCIES
    angles = 100**steps * boxes[..., None]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).permute(0, 1, 3, 4, 2).flatten(2)


class GLIGENTextBoundingboxProjection(nn.Module):
    """Boxes with phrases, or (`with_images`) with phrases and pictures, as tokens (B, boxes or 2·boxes, out_dim)."""

    def __init__(self, positive_len: int, out_dim: int, with_images: bool = False):
        super().__init__()
        position = _FREQUENCIES * 2 * 4
        if with_images:
            self.linears_text = _mlp(positive_len + position, out_dim)
            self.linears_image = _mlp(positive_len + position, out_dim)
            self.null_text_feature = nn.Parameter(torch.zeros(positive_len))
            self.null_image_feature = nn.Parameter(torch.zeros(positive_len))
        else:
            self.linears = _mlp(positive_len + position, out_dim)
            self.null_positive_feature = nn.Parameter(torch.zeros(positive_len))
        self.null_position_feature = nn.Parameter(torch.zeros(position))

    def forward(
        self,
        boxes: torch.Tensor,
        masks: torch.Tensor,
        positive_embeddings: torch.Tensor | None = None,
        phrases_masks: torch.Tensor | None = None,
        image_masks: torch.Tensor | None = None,
        phrases_embeddings: torch.Tensor | None = None,
        image_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`boxes` (B, boxes, 4), masks (B, boxes) with 0 for padding, embeddings (B, boxes, positive_len)."""
        position = torch.where(masks[..., None] > 0, box_embedding(boxes), self.null_position_feature)
        if positive_embeddings is not None:
            named = torch.where(masks[..., None] > 0, positive_embeddings, self.null_positive_feature)
            return self.linears(torch.cat([named, position], dim=-1))
        if phrases_masks is None or image_masks is None or phrases_embeddings is None or image_embeddings is None:
            raise InputError("the boxes have neither positive_embeddings nor the four arguments for phrases and images")
        text = torch.where(phrases_masks[..., None] > 0, phrases_embeddings, self.null_text_feature)
        image = torch.where(image_masks[..., None] > 0, image_embeddings, self.null_image_feature)
        text = self.linears_text(torch.cat([text, position], dim=-1))
        return torch.cat([text, self.linears_image(torch.cat([image, position], dim=-1))], dim=1)
