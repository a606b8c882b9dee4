"""Where pictures are written: one file, a folder, or names made from a pattern."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, RepositoryError, check_choice
from ..images import read_settings

_PLACES = ("prompt", "seed", "index")
_OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Destination:
    """What `--output` means for pictures of the given prompts and seeds.

    A file `name.png` is overwritten (and numbered where there are several pictures); so is what a pattern with
    {prompt}, {seed} or {index} gives. Anything else is a folder, in which no picture replaces a different one.
    """

    def __init__(self, output: str, pictures: Sequence[tuple[Any, int]]):
        target = Path(output)
        if target.suffix.lower() in _OTHER_FORMATS and not target.is_dir():
            raise InputError(f"output is {output!r}; pictures are written as .png, which keeps their settings")
        self.is_folder = not ("{" in output or target.suffix.lower() == ".png") or target.is_dir()
        if self.is_folder:
            self._paths = [target / name for name in _named("{prompt}-{seed}.png", pictures)]
            self._film = target / "film"
        elif "{" in output:
            self._paths = _named(output if output.lower().endswith(".png") else f"{output}.png", pictures)
            self._film = self._paths[0].parent / "film"
        else:
            numbered = [target.with_stem(f"{target.stem}-{k + 1}") for k in range(len(pictures))]
            self._paths = numbered if len(pictures) > 1 else [target]
            self._film = target.with_name(f"{target.stem}-film")

    def picture(self, index: int, settings: Mapping[str, Any]) -> Path:
        """The path of picture `index`; in a folder, the first of its names that is free or has these settings."""
        path = self._paths[index]
        if not self.is_folder:
            return path
        numbered = (path.with_stem(f"{path.stem}-{k}") for k in itertools.count(2))
        return next(one for one in itertools.chain([path], numbered) if not one.exists() or _holds(one, settings))

    def film(self, suffix: str) -> Path:
        """The path of the film strip (".png") or the GIF (".gif") of all pictures."""
        return self._film.with_name(self._film.name + suffix)


def _holds(path: Path, settings: Mapping[str, Any]) -> bool:
    try:
        return read_settings(path) == settings
    except RepositoryError:
        return False


def _named(pattern: str, pictures: Sequence[tuple[Any, int]]) -> list[Path]:
    try:
        for _, name, _, _ in string.Formatter().parse(pattern):
            if name is not None:
                check_choice("a place in --output", name, _PLACES, InputError)
        named = [
            pattern.format(prompt=slug(prompt), seed=seed, index=k + 1) for k, (prompt, seed) in enumerate(pictures)
        ]
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"output is {pattern!r}, which is no pattern ({error})") from None
    if len(set(named)) < len(named):
        raise InputError(f"output is {pattern!r}, which gives two pictures one name; put {{index}} or {{seed}} into it")
    return [Path(name) for name in named]


def slug(prompt: Any) -> str:
    """`prompt` as a short file name: its letters and digits of any script, joined by hyphens."""
    words = re.sub(r"[\W_]+", "-", str(prompt).lower()).strip("-")
    return words[:60].rstrip("-") or "picture"
