"""How results are compared with another library's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max |Δ| over the largest magnitude of `theirs`; infinite where shapes or finiteness differ."""
    if ours.shape != theirs.shape or not torch.isfinite(ours).all():
        return float("inf")
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()


def assert_same_pictures(ours: list[Any], theirs: list[Any]) -> None:
    """uint8 pictures equal but for 1 level in at most 0.1 % of all their values; and not blank."""
    assert len(ours) == len(theirs)
    first, second = (np.stack([np.asarray(picture, dtype=np.int16) for picture in list_]) for list_ in (ours, theirs))
    assert first.shape == second.shape
    assert first.std(axis=(1, 2, 3)).min() > 1, "a blank picture proves nothing"
    difference = np.abs(first - second)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001
