"""Pictures to train on, and the order in which they come."""

from __future__ import annotations

import gzip
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import ConfigError, InputError, RepositoryError, check_choice
from .draws import generator_for
from .objectives import Batch

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_MODES = {1: "L", 3: "RGB"}


class Pictures(Protocol):
    """A data set: pictures by index, all of one size, with or without classes."""

    channels: int
    resolution: int
    class_names: list[str]  # empty where there are no classes

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor) -> Batch:
        """`images` (B, C, H, W) float32 in [−1, 1] and, with classes, `class_labels` (B,) int64."""
        ...


def to_signed(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes 0 … 255 as float32 in [−1, 1]."""
    return pixels.float().div_(127.5).sub_(1.0)


class FashionMNIST:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test pictures, 28×28 grey, 10 classes; MIT licence.

    `folder` holds the four `*-ubyte.gz` (or unpacked) IDX files; by default the places where the Debian package
    `dataset-fashion-mnist` and torchvision put them are searched. Raises `RepositoryError` where there are none.
    """

    channels, resolution = 1, 28
    class_names = [  # noqa: RUF012
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
    folders = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw", "data/fashion")

    def __init__(self, split: str = "train", folder: str | os.PathLike | None = None):
        check_choice("split", split, ("train", "test"), InputError)
        prefix = {"train": "train", "test": "t10k"}[split]
        home = self._find(f"{prefix}-images-idx3-ubyte", folder)
        self.pixels = read_idx(home / f"{prefix}-images-idx3-ubyte").unsqueeze(1)
        self.labels = read_idx(home / f"{prefix}-labels-idx1-ubyte").long()
        if len(self.pixels) != len(self.labels):
            raise RepositoryError(f"{str(home)!r} has {len(self.pixels)} pictures but {len(self.labels)} labels")

    def _find(self, name: str, folder: str | os.PathLike | None) -> Path:
        places = self.folders if folder is None else (folder,)
        for place in map(Path, places):
            if (place / name).is_file() or (place / f"{name}.gz").is_file():
                return place
        raise RepositoryError(
            f"Fashion-MNIST is not there: no {name}[.gz] in {', '.join(map(str, places))}; install it with "
            "`apt-get install dataset-fashion-mnist`, or put the four files of "
            "https://github.com/zalandoresearch/fashion-mnist into a folder and name that"
        )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor) -> Batch:
        return {"images": to_signed(self.pixels[indices]), "class_labels": self.labels[indices]}


def read_idx(path: str | os.PathLike) -> torch.Tensor:
    """The byte array in an IDX file, plain or with `.gz` added; raises `RepositoryError` if it is damaged."""
    plain, packed = Path(path), Path(f"{os.fspath(path)}.gz")
    try:
        content = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise RepositoryError(f"{os.fspath(path)!r} cannot be read ({error})") from error
    # The format: two zero bytes, the type (8: bytes), the number of axes, each axis as a big-endian int32, the data.
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise RepositoryError(f"{os.fspath(path)!r} is not an IDX file of bytes")
    start = 4 + 4 * content[3]
    shape = [int(size) for size in np.frombuffer(content[4:start], dtype=">i4")]
    if len(content) != start + int(np.prod(shape)):
        raise RepositoryError(
            f"{os.fspath(path)!r} is truncated: {len(content) - start} bytes of data for shape {shape}"
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy())


class ImageFolder:
    """The pictures of a folder, its subfolders (if it has any with pictures) being the classes, in sorted order.

    Each is cut to the square in its middle and scaled to `resolution` pixels; `channels` is 3 or 1 (grey);
    `mirror` adds each picture's mirror image as one more sample. Decoding runs in threads. Raises `RepositoryError`
    where there are no pictures, pictures both inside and outside class folders, or a damaged one.
    """

    def __init__(self, folder: str | os.PathLike, resolution: int, channels: int = 3, mirror: bool = False):
        if channels not in _MODES:
            raise ConfigError(f"channels is {channels}; pictures are read with 1 (grey) or 3 (RGB)")
        if resolution < 1:
            raise ConfigError(f"resolution is {resolution}; it must be positive")
        self.folder, self.resolution, self.channels, self.mirror = Path(folder), resolution, channels, mirror
        if not self.folder.is_dir():
            raise RepositoryError(f"there is no folder {str(self.folder)!r} to take pictures from")
        loose = _pictures_in(self.folder)
        classes = {place.name: _pictures_in(place) for place in sorted(self.folder.iterdir()) if place.is_dir()}
        classes = {name: paths for name, paths in classes.items() if paths}
        if loose and classes:
            raise RepositoryError(
                f"{str(self.folder)!r} holds pictures ({loose[0].name!r}, …) beside class folders "
                f"({next(iter(classes))!r}, …); move them into a class folder or elsewhere"
            )
        self.class_names = list(classes)
        self.paths = loose or [path for paths in classes.values() for path in paths]
        if not self.paths:
            raise RepositoryError(f"there are no pictures ({', '.join(PICTURE_SUFFIXES)}) in {str(self.folder)!r}")
        counts = [len(paths) for paths in classes.values()]
        self.labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))
        self._threads = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))

    def __len__(self) -> int:
        return len(self.paths) * (2 if self.mirror else 1)

    def batch(self, indices: torch.Tensor) -> Batch:
        # Sample i of the second half is the mirror image of sample i of the first.
        mirrored, files = (indices // len(self.paths)).tolist(), indices % len(self.paths)
        images = torch.stack(list(self._threads.map(self._read, files.tolist(), mirrored)))
        return {"images": to_signed(images), **({"class_labels": self.labels[files]} if self.class_names else {})}

    def _read(self, index: int, mirrored: int) -> torch.Tensor:
        path = self.paths[index]
        try:
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture).convert(_MODES[self.channels])
                square = _square(upright, self.resolution)
        except (OSError, ValueError, SyntaxError) as error:
            raise RepositoryError(f"the picture {str(path)!r} cannot be read ({error})") from error
        pixels = np.asarray(square).reshape(self.resolution, self.resolution, self.channels)
        return torch.from_numpy(pixels[:, ::-1].copy() if mirrored else pixels.copy()).permute(2, 0, 1)


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


def _square(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of `picture`, scaled to `size`."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


class ShuffledOrder:
    """An endless order of samples, every epoch a new permutation; a function of (seed, place) alone."""

    def __init__(self, length: int, seed: int):
        if length < 1:
            raise InputError("there is nothing to train on: the data set is empty")
        self.length, self.seed = length, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def _permutation_of(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            generator = generator_for(self.seed, "order", epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.length, generator=generator)
        return self._permutation

    def indices(self, first: int, count: int) -> torch.Tensor:
        """The samples at places `first` … `first + count − 1`; a batch may reach into the next epoch."""
        pieces = []
        while count > 0:
            epoch, place = divmod(first, self.length)
            piece = self._permutation_of(epoch)[place : place + count]
            pieces.append(piece)
            first, count = first + len(piece), count - len(piece)
        return torch.cat(pieces)


def batches(data: Pictures, seed: int, size: int, start: int, stop: int) -> Generator[Batch]:
    """The batches of optimiser steps `start` … `stop − 1`, each read while the one before is trained on."""
    order = ShuffledOrder(len(data), seed)

    def load(step: int) -> Batch:
        return data.batch(order.indices(step * size, size))

    with ThreadPoolExecutor(max_workers=1) as reader:
        following = reader.submit(load, start) if start < stop else None
        for step in range(start, stop):
            assert following is not None
            current = following.result()
            following = reader.submit(load, step + 1) if step + 1 < stop else None
            yield current
