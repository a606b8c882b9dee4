"""Watching noise become a picture: frames of one run as a strip or a GIF."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..images import film_strip, image_grid, save_gif, save_png
from .checks import positive_int

if TYPE_CHECKING:
    from PIL import Image

    from .denoise import DenoisingPipeline


@dataclass(frozen=True)
class Film:
    """Frames of a run from noise to picture, with their labels, and the `result` that the pipeline's call returns."""

    frames: list[Image.Image]
    labels: list[str]
    result: Any

    @property
    def images(self) -> list[Image.Image]:
        """The final pictures (PIL)."""
        return self.result.images

    def strip(self) -> Image.Image:
        """All frames beside each other, each with its step under it."""
        return film_strip(self.frames, self.labels)

    def save(self, path: str | os.PathLike, duration: int = 200) -> Path:
        """Write a GIF (`duration` ms a frame, the last one held) or a PNG strip, as the suffix of `path` says."""
        target = Path(path)
        if target.suffix.lower() == ".gif":
            save_gif(self.frames, target, duration=duration)
        elif target.suffix.lower() == ".png":
            save_png(self.strip(), target)
        else:
            raise InputError(f"{target.name!r} should end in .gif or .png")
        return target

    def _repr_png_(self) -> bytes | None:
        return self.strip()._repr_png_()


def record(pipeline: DenoisingPipeline, frames: int, *args: Any, **kwargs: Any) -> Film:
    """Run `pipeline` and keep `frames` evenly spaced pictures of its sample, the last one finished."""
    count = positive_int("frames", frames)
    trajectory = pipeline.prepare(*args, **kwargs)
    total = len(trajectory.plan)
    keep = {round((k + 1) * total / count) - 1 for k in range(count)}
    result = pipeline.decode(trajectory)
    pictures, labels = [_as_one(result.images)], ["noise"]
    for event in pipeline._run(trajectory):
        if event.index in keep or event.index == total - 1:
            result = event.decode()
            pictures.append(_as_one(result.images))
            labels.append(f"step {event.index + 1} of {total}")
    return Film(pictures, labels, result)


def together(films: Sequence[Film]) -> Film:
    """Films of as many frames each, shown side by side as one; its `result` is that of the last."""
    first = films[0]
    frames = [_as_one(list(frames)) for frames in zip(*(film.frames for film in films), strict=True)]
    return Film(frames, first.labels, films[-1].result)


def _as_one(images: list[Image.Image]) -> Image.Image:
    if len(images) == 1:
        return images[0]
    return image_grid(images, columns=min(len(images), 4))
