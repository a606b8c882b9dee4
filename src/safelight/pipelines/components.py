"""What `model_index.json` says of a component, and what becomes of it: [library, class] <-> an object.

Only classes that are known are ever built: this library's, a few by transformers' names, transformers' own models and
tokenizers, and classes of the running script that derive from ours.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..configuration import _REGISTRY, ConfigMixin
from ..errors import MissingDependencyError, RepositoryError, UnsafeFileError, nearest
from ..repository.hub import Source
from ..repository.weights import find_weights

logger = logging.getLogger(__name__)

_PACKAGE = __name__.split(".", maxsplit=1)[0]

# Names in files -> our own classes of the same files.
_OURS = {
    ("transformers", "CLIPTextModel"): "CLIPTextModel",
    ("transformers", "CLIPTextModelWithProjection"): "CLIPTextModelWithProjection",
    ("transformers", "CLIPTokenizer"): "CLIPTokenizer",
    ("transformers", "CLIPTokenizerFast"): "CLIPTokenizer",
    ("transformers", "CLIPImageProcessor"): "CLIPImageProcessor",
    ("transformers", "CLIPImageProcessorFast"): "CLIPImageProcessor",
    ("transformers", "CLIPImageProcessorPil"): "CLIPImageProcessor",
    ("transformers", "CLIPFeatureExtractor"): "CLIPImageProcessor",
    ("stable_diffusion", "StableDiffusionSafetyChecker"): "StableDiffusionSafetyChecker",
}
# Our class -> what files call it, where that is not ["diffusers", its name].
_WRITTEN = {ours: key for key, ours in reversed(_OURS.items())}

# What a component of transformers may be.
_TRANSFORMERS_BASES = (
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "ImageProcessingMixin",
    "FeatureExtractionMixin",
    "ProcessorMixin",
)


def is_identity(entry: Any) -> bool:
    """Whether a config entry describes a component: [library, class], both strings or both null."""
    return isinstance(entry, list | tuple) and len(entry) == 2 and all(e is None or isinstance(e, str) for e in entry)


def uncompiled(component: Any) -> Any:
    """The network inside what `torch.compile` made of it; anything else as it is."""
    return getattr(component, "_orig_mod", component)


def identity(component: Any) -> tuple[str | None, str | None]:
    """[library, class] as files have it."""
    if component is None:
        return (None, None)
    kind = type(uncompiled(component))
    library = kind.__module__.split(".", maxsplit=1)[0]
    if library == _PACKAGE:
        return _WRITTEN.get(kind.__name__, ("diffusers", kind.__name__))
    if library == "diffusers" and ".pipelines." in kind.__module__:
        return (kind.__module__.split(".")[-2], kind.__name__)
    return (library, kind.__name__)


def describe(component: Any) -> tuple[str, str, str, str]:
    """Class, parameters, dtype and device, for people."""
    if component is None:
        return ("–", "", "", "")
    if not isinstance(component, torch.nn.Module):
        return (type(component).__name__, "", "", "")
    parameters = list(component.parameters())
    first = parameters[0] if parameters else torch.empty(0)
    count = f"{sum(p.numel() for p in parameters):,}"
    return (type(component).__name__, count, str(first.dtype).removeprefix("torch."), str(first.device))


def pipeline_class(name: Any) -> Any:
    """The pipeline class of that name; raises `UnsafeFileError` for one that is not known."""
    from .base import DiffusionPipeline, known_pipelines

    known = known_pipelines()
    own = _REGISTRY.get(name) if isinstance(name, str) else None
    if isinstance(own, type) and issubclass(own, DiffusionPipeline) and own is not DiffusionPipeline:
        return own
    if not isinstance(name, str) or name not in known:
        raise UnsafeFileError(
            f"model_index.json names the pipeline {name!r}, which is not known; {nearest(name, known)}"
        )
    return known[name]


def refuse_remote_code(options: dict[str, Any]) -> None:
    """Raise for the options that make other libraries run a repository's own code."""
    for name in ("custom_pipeline", "custom_revision", "trust_remote_code"):
        if options.pop(name, None):
            raise UnsafeFileError(
                f"{name} would run code from a repository, which is never done; import the class yourself"
            )


def component_class(name: str, entry: Any) -> Any:
    """The class of component `name`; raises `UnsafeFileError` for a library or class that is not known."""
    library, kind = entry
    package = importlib.import_module(_PACKAGE)
    ours = _OURS.get((library, kind))
    if ours is not None:
        return getattr(package, ours)
    if library in ("diffusers", _PACKAGE):
        known = [one for one in package.__all__ if not one.endswith(("Error", "Pipeline", "Mixin"))]
        if kind in known and inspect.isclass(getattr(package, kind)):
            return getattr(package, kind)
        raise UnsafeFileError(
            f"component {name!r} is of the class {kind!r}, which is not known; {nearest(kind, known)} "
            f"Or pass an object of your own as {name}=…"
        )
    if library == "transformers":
        return _from_transformers(name, kind)
    own = _REGISTRY.get(kind)
    if own is not None and own.__module__.split(".", maxsplit=1)[0] == library and library in sys.modules:
        return own
    raise UnsafeFileError(
        f"component {name!r} is of {library}.{kind}, and only classes of this library, of transformers and of the "
        f"running script are loaded; pass your own object as {name}=…"
    )


def _from_transformers(name: str, kind: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"component {name!r} is transformers' {kind}: install it with `pip install transformers`"
        ) from error
    found = getattr(transformers, kind, None)
    allowed = tuple(getattr(transformers, base) for base in _TRANSFORMERS_BASES if hasattr(transformers, base))
    if not (inspect.isclass(found) and issubclass(found, allowed)):
        raise UnsafeFileError(
            f"component {name!r} is transformers' {kind!r}, which is no model, tokenizer or processor"
        )
    return found


def _is_network(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, torch.nn.Module)


def locate(source: Source, name: str, kind: Any) -> Source:
    """Where a component's files are: its own folder, or in old repositories the root."""
    marker = getattr(kind, "config_name", None)
    if source.folder is not None:
        return source.sub(name) if (source.folder / source.subfolder / name).is_dir() else _root(source, name, marker)
    inside = source.sub(name)
    if marker is None or inside.find(marker) is not None:
        return inside
    return _root(source, name, marker)


def _root(source: Source, name: str, marker: str | None) -> Source:
    if marker is None or source.find(marker) is None:
        raise RepositoryError(f"{str(source)!r} names the component {name!r}, but has no folder {name!r}")
    return source


def load(source: Source, name: str, entry: Any, options: Mapping[str, Any]) -> Any:
    """Build the component that `entry` names from its files, or None for [null, null]."""
    if entry[1] is None:
        return None
    kind = component_class(name, entry)
    place = locate(source, name, kind)
    where = {
        "subfolder": place.subfolder,
        "revision": place.revision,
        "cache_dir": place.cache_dir,
        "local_files_only": place.local_files_only,
        "token": place.token,
        "force_download": place.force_download,
    }
    if not _is_network(kind):
        return kind.from_pretrained(place.location, **where)
    if kind.__module__.split(".", maxsplit=1)[0] == _PACKAGE or issubclass(kind, ConfigMixin):
        return kind.from_pretrained(place.location, **where, **options)
    from ..runtime.precision import resolve_dtype

    dtype = resolve_dtype(options["dtype"], options["device"]) or torch.float32
    model = kind.from_pretrained(
        place.location, **where, dtype=dtype, variant=options["variant"], use_safetensors=options["use_safetensors"]
    )
    return model.eval() if options["device"] is None else model.eval().to(options["device"])


def fetch(source: Source, name: str, entry: Any, variant: str | None, use_safetensors: bool | None) -> None:
    """Bring the files of a component into the cache."""
    kind = component_class(name, entry)
    place = locate(source, name, kind)
    if _is_network(kind):
        place.file(getattr(kind, "config_name", "config.json"))
        find_weights(place, getattr(kind, "_weights_name", "model"), variant, use_safetensors)
    elif getattr(kind, "config_name", None):
        place.file(kind.config_name)
    else:
        load(source, name, entry, {})


def save(component: Any, folder: Path, variant: str | None, max_shard_size: int | str | None) -> None:
    """Write a component with its own `save_pretrained`, with the options that it takes."""
    component = uncompiled(component)
    write = getattr(component, "save_pretrained", None)
    if write is None:
        raise RepositoryError(f"{type(component).__name__} cannot be saved: it has no save_pretrained")
    wanted = {"variant": variant, "max_shard_size": max_shard_size}
    if not isinstance(component, torch.nn.Module):
        wanted = {}
    write(folder, **{name: value for name, value in wanted.items() if value is not None})
