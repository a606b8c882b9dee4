"""Frames written as a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputError
from ..images import save_gif

if TYPE_CHECKING:
    from PIL import Image


def export_to_gif(image: Sequence[Image.Image], output_gif_path: str | os.PathLike | None = None, fps: int = 10) -> str:
    """Write the frames as an endless GIF (to a new temporary file if no path is given) and return its path."""
    if not 0 < fps <= 100:
        raise InputError(f"fps is {fps}; a GIF shows more than 0 and at most 100 frames a second")
    if output_gif_path is None:
        handle, output_gif_path = tempfile.mkstemp(suffix=".gif")
        os.close(handle)
    save_gif(image, output_gif_path, duration=int(1000 // fps), hold=1, width=1)
    return os.fspath(output_gif_path)
