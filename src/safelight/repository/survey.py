"""What a model is made of, from its configs and the headers of its weight files alone."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..configuration import read_json
from ..errors import RepositoryError, UnsafeFileError
from .hub import Source
from .weights import Entry, entry_of, find_weights, read_header

_WEIGHTS = ("diffusion_pytorch_model", "model")
_CONFIGS = {"config.json": "model", "scheduler_config.json": "scheduler", "preprocessor_config.json": "processor"}
# Classes of these kinds have no weights.
_WITHOUT_WEIGHTS = re.compile("Scheduler|Tokenizer|Processor|FeatureExtractor")


@dataclass
class File:
    """`name` within the repository, `size` in bytes; `cached`: on this machine already."""

    name: str
    size: int
    cached: bool = True


@dataclass
class Part:
    """One component: what it is, its files, and how many numbers of each dtype they hold.

    `parameters` counts floating-point numbers; `bytes` are those of all tensors as stored.
    """

    name: str
    library: str | None = None
    class_name: str | None = None
    parameters: int = 0
    tensors: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    files: list[File] = field(default_factory=list)
    note: str | None = None

    def count(self, entries: Iterable[Entry]) -> Part:
        """Add the tensors of one weight file."""
        numbers = Counter(self.dtypes)
        for entry in entries:
            count = math.prod(entry.shape)
            numbers[str(entry.dtype).removeprefix("torch.")] += count
            self.parameters += count if entry.dtype.is_floating_point else 0  # leaves out tables of positions
            self.bytes += entry.end - entry.start
            self.tensors += 1
        self.dtypes = dict(numbers)
        return self


@dataclass
class Survey:
    """A whole model. `kind`: pipeline, model, scheduler, processor or file; sizes are in bytes.

    `cached` is what of its files is on this machine, `to_download` what loading it would fetch.
    """

    model: str
    kind: str
    class_name: str | None
    parts: list[Part]
    parameters: int = 0
    bytes: int = 0
    cached: int = 0
    to_download: int = 0

    def __post_init__(self) -> None:
        files = {file.name: file for part in self.parts for file in part.files}.values()
        self.parameters = sum(part.parameters for part in self.parts)
        self.bytes = sum(part.bytes for part in self.parts)
        self.cached = sum(file.size for file in files if file.cached)
        self.to_download = sum(file.size for file in files if not file.cached)


@dataclass(frozen=True)
class Listing(Source):
    """A source whose weights are found without being fetched; `sizes` lists what the Hub has (empty when offline)."""

    sizes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source) -> Listing:
        """`source` with the Hub's list of its files; offline, or where the Hub does not answer, the cache has to do."""
        listing = cls(**{one.name: getattr(source, one.name) for one in fields(source)})
        if source.is_local or source.local_files_only:
            return listing
        import huggingface_hub
        from huggingface_hub import constants, errors

        if constants.HF_HUB_OFFLINE:
            return listing
        try:
            info = huggingface_hub.HfApi(token=source.token).model_info(
                source.location, revision=source.revision, files_metadata=True
            )
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError):
            return listing  # what is not cached either gives the source's own error
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        return replace(listing, sizes=sizes)

    def local(self, name: str) -> Path | None:
        """The file on this machine, if it is here."""
        if self.is_local or not self.sizes:
            return super().find(name)
        import huggingface_hub

        path = huggingface_hub.try_to_load_from_cache(
            self.location,
            self.relative(name),
            cache_dir=None if self.cache_dir is None else os.fspath(self.cache_dir),
            revision=self.revision,
        )
        return Path(path) if isinstance(path, str) else None

    def find(self, name: str) -> Path | None:
        if self.is_local or not self.sizes:
            return super().find(name)
        if self.relative(name) not in self.sizes:
            return None
        return super().find(name) if name.endswith(".json") else self.local(name) or Path(name)

    def names(self) -> list[str]:
        """The names of the files in this folder, subfolders left out."""
        if self.sizes:
            prefix = self.relative("")
            inside = [name.removeprefix(prefix) for name in self.sizes if name.startswith(prefix)]
        else:
            folder = self.folder if self.folder is not None else _snapshot(self)
            root = None if folder is None else folder / self.subfolder
            inside = os.listdir(root) if root is not None and root.is_dir() else []
        return sorted(name for name in inside if "/" not in name)

    def as_file(self, name: str) -> File:
        path = self.local(name)
        size = self.sizes[self.relative(name)] if path is None else path.stat().st_size
        return File(self.relative(name), size, cached=path is not None)

    def header(self, name: str) -> Iterable[Entry]:
        """The tensors of a safetensors file; of one that is not here, only the header is fetched."""
        path = self.local(name)
        if path is not None:
            return read_header(path).values()
        import huggingface_hub

        api = huggingface_hub.HfApi(token=self.token)
        try:
            found = api.parse_safetensors_file_metadata(self.location, self.relative(name), revision=self.revision)
        except Exception as error:
            raise RepositoryError(f"the header of {self.relative(name)!r} could not be fetched: {error}") from error
        return [entry_of(vars(info), 0) for info in found.tensors.values()]


def _snapshot(source: Source) -> Path | None:
    """The folder of the cache that holds this source's root."""
    index = next((path for name in ("model_index.json", *_CONFIGS) if (path := Source.find(source, name))), None)
    depth = source.subfolder.count("/") + 1 if source.subfolder else 0
    return None if index is None else index.parents[depth]


def survey(model: str, variant: str | None = None, **options: Any) -> Survey:
    """What `model` (a folder, a safetensors file or a repository id) is made of; no weights are loaded or fetched.

    `variant` and `options` are those of `from_pretrained`. Raises `RepositoryError` where there is no model, and
    `WeightsError` for a damaged file.
    """
    if Path(model).is_file():
        return _single_file(Path(model))
    source = Listing.of(Source.from_options(model, options)[0])
    index = source.find("model_index.json")
    if index is not None:
        content = read_json(index)
        parts = [_component(source, name, value, variant) for name, value in content.items() if isinstance(value, list)]
        return Survey(model, "pipeline", content.get("_class_name"), parts)
    for name, kind in _CONFIGS.items():
        config = source.find(name)
        if config is not None:
            return Survey(
                model, kind, class_name := _class_name(read_json(config)), [_part(source, kind, variant, class_name)]
            )
    raise RepositoryError(f"{model!r} holds no model: none of model_index.json, {', '.join(_CONFIGS)} is there")


def _class_name(config: Mapping[str, Any]) -> str | None:
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    return named or config.get("image_processor_type") or config.get("feature_extractor_type")


def _single_file(path: Path) -> Survey:
    """A file on its own; its parts are the first words of its keys."""
    if path.suffix != ".safetensors":
        raise RepositoryError(f"{str(path)!r} is not a .safetensors file; only those can be looked at safely")
    groups: dict[str, list[Entry]] = {}
    for key, entry in read_header(path).items():
        groups.setdefault(key.split(".", 1)[0], []).append(entry)
    parts = [Part(name).count(entries) for name, entries in groups.items()]
    for part in parts:
        part.files = [File(path.name, path.stat().st_size)]
    return Survey(str(path), "file", None, parts)


def _component(source: Listing, name: str, value: Sequence[str | None], variant: str | None) -> Part:
    library, class_name = (*value, None, None)[:2]
    if class_name is None:
        return Part(name, note="left out")
    below = replace(source, subfolder=source.relative(name))
    # Old repositories keep everything at the root.
    part = _part(below if below.names() else source, name, variant, class_name)
    part.library = library
    return part


def _part(source: Listing, name: str, variant: str | None, class_name: str | None) -> Part:
    part = Part(name, class_name=class_name)
    if class_name is not None and _WITHOUT_WEIGHTS.search(class_name):
        wanted = source.names() if source.subfolder else [name for name in source.names() if name in list(_CONFIGS)[1:]]
        part.files = [source.as_file(one) for one in wanted]
        return part
    if source.find("config.json"):
        part.files.append(source.as_file("config.json"))
    for base in _WEIGHTS:
        try:
            paths = find_weights(source, base, variant)
        except UnsafeFileError:
            part.note = "only pickles, which are refused unless use_safetensors=False is passed"
        except RepositoryError as error:
            part.note = part.note or "no weights"
            if any(one.startswith(base) and one.endswith(".safetensors") for one in source.names()):
                part.note = str(error)
        else:
            part.note = None
            if len(paths) > 1:
                indexes = [one for one in source.names() if one.startswith(base) and ".safetensors.index" in one]
                part.files += [source.as_file(one) for one in indexes]
            for path in paths:
                part.files.append(source.as_file(path.name))
                part.count(source.header(path.name))
            break
    return part
