"""A pipeline as a set of components: loaded, saved, shown, moved, swapped."""

from __future__ import annotations

import html
import importlib
import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from ..configuration import ConfigMixin, check_known, init_parameters, read_json
from ..errors import ConfigError, InputError, RepositoryError, UnknownArgumentError
from ..repository.hub import Source
from . import components

logger = logging.getLogger(__name__)

P = TypeVar("P", bound="DiffusionPipeline")

_LOAD_OPTIONS = ("dtype", "torch_dtype", "variant", "use_safetensors", "device")


class DiffusionPipeline(ConfigMixin):
    """Base of the pipelines; `DiffusionPipeline.from_pretrained` gives the class that the repository names.

    Components are the constructor's arguments that were registered with `register_modules`; assigning another one
    (`pipe.scheduler = …`) replaces it. No call writes on the object.
    """

    config_name = "model_index.json"
    model_cpu_offload_seq: ClassVar[str | None] = None
    _optional_components: ClassVar[list[str]] = []
    _exclude_from_cpu_offload: ClassVar[list[str]] = []

    def register_modules(self, **modules: Any) -> None:
        """Set the pipeline's components; the config notes each one's library and class."""
        for name, module in modules.items():
            self.register_to_config(**{name: components.identity(module)})
            object.__setattr__(self, name, module)

    def __setattr__(self, name: str, value: Any) -> None:
        if components.is_identity(self.config.get(name)):
            self.register_modules(**{name: value})
        else:
            object.__setattr__(self, name, value)

    # ---- loading and saving --------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[P],
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        dtype: torch.dtype | str | Mapping[str, Any] | None = None,
        torch_dtype: torch.dtype | str | Mapping[str, Any] | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> P:
        """Load every component that `model_index.json` names, from a folder or a repository on the Hub.

        `dtype` (or `torch_dtype`) is one dtype, "auto", or a dict by component with "default"; float32 unless given.
        `variant`, `use_safetensors`, `device` and the download options are those of a model's `from_pretrained`. A
        component given by name (`unet=…`, `safety_checker=None`) is used instead of the file's. Raises
        `RepositoryError`, `WeightsError`, and `UnsafeFileError` for a class that is not known.
        """
        from ..runtime.precision import resolve_device

        device = resolve_device(device, options.pop("device_map", None))
        components.refuse_remote_code(options)
        source, given = Source.from_options(pretrained_model_name_or_path, options)
        index_path = source.find(str(cls.config_name))
        if index_path is None:
            hint = " (it holds a single model: load it with the model's class)" if source.find("config.json") else ""
            raise RepositoryError(f"{source.absence(str(cls.config_name))}, so it is no pipeline{hint}")
        source, index = source.pinned(index_path), read_json(index_path)
        kind = cls._class_for(index)
        expected = init_parameters(kind)
        names = (*expected, *_LOAD_OPTIONS, *Source.option_names())
        check_known(f"{kind.__name__}.from_pretrained", given, names)
        load = {"dtype": torch_dtype if dtype is None else dtype, "device": device}
        arguments = kind._loaded(source, index, given, {**load, "variant": variant, "use_safetensors": use_safetensors})
        built = kind(**arguments)
        values = {
            k: v for k, v in index.items() if not components.is_identity(v) and k not in expected and k != "_class_name"
        }
        built.register_to_config(**{**values, **built.config, "_name_or_path": source.location})
        return built

    @classmethod
    def _loaded(
        cls, source: Source, index: Mapping[str, Any], given: dict[str, Any], load: dict[str, Any]
    ) -> dict[str, Any]:
        """The constructor's arguments: those given, the values in `index`, and the components it names, loaded."""
        expected, dtypes = init_parameters(cls), load["dtype"]
        if isinstance(dtypes, Mapping):
            check_known("dtype", dtypes, (*expected, "default"))
        named = {name: entry for name, entry in index.items() if components.is_identity(entry) and name not in given}
        present = {name: entry for name, entry in named.items() if entry[1] is not None}
        plain = {name: value for name, value in index.items() if name in expected and not components.is_identity(value)}
        for name, value in plain.items():
            if isinstance(value, list) and expected[name].default is inspect.Parameter.empty:
                raise RepositoryError(f"{str(source)!r} has {value!r} for {name!r}; [library, class] is needed")
        arguments = cls._completed({**plain, **given, **present}, expected, str(source))
        for name, entry in present.items():
            if name not in expected:
                logger.warning("%s has no component %r; the repository's is left out", cls.__name__, name)
                del arguments[name]
                continue
            own = dtypes.get(name, dtypes.get("default")) if isinstance(dtypes, Mapping) else dtypes
            arguments[name] = components.load(source, name, entry, {**load, "dtype": own})
        return arguments

    @classmethod
    def _class_for(cls: type[P], index: Mapping[str, Any]) -> type[P]:
        """The class to build: this one, or for `DiffusionPipeline` itself the one that the file names."""
        named = index.get("_class_name")
        abstract = cls.__init__ is DiffusionPipeline.__init__
        return components.pipeline_class(named) if abstract else cls

    @classmethod
    def _completed(cls, arguments: dict[str, Any], expected: Mapping[str, Any], where: str) -> dict[str, Any]:
        """`arguments` with None for optional components; raises `RepositoryError` naming all that are needed."""
        absent = [name for name, one in expected.items() if name not in arguments and one.default is one.empty]
        needed = [repr(name) for name in absent if name not in cls._optional_components]
        if needed:
            raise RepositoryError(f"{cls.__name__} needs the component {', '.join(needed)}, which {where!r} lacks")
        return {**arguments, **dict.fromkeys(absent)}

    @classmethod
    def from_pipe(cls: type[P], pipeline: DiffusionPipeline, **overrides: Any) -> P:
        """Another pipeline around the same components, shared and not copied; `overrides` replace some."""
        if cls.__init__ is DiffusionPipeline.__init__:
            raise ConfigError("from_pipe needs a specific class, such as StableDiffusionPipeline")
        expected = init_parameters(cls)
        check_known(f"{cls.__name__}.from_pipe", overrides, expected)
        plain = {name: value for name, value in pipeline.config.items() if not components.is_identity(value)}
        shared = {name: value for name, value in {**plain, **pipeline.components}.items() if name in expected}
        return cls(**cls._completed({**shared, **overrides}, expected, type(pipeline).__name__))

    @classmethod
    def from_config(cls: type[P], config: Mapping[str, Any] | None = None, **overrides: Any) -> P:
        """Build from components: `config` holds only their class names, so each must be among `overrides`."""
        expected = init_parameters(cls)
        check_known(f"{cls.__name__}.from_config", overrides, expected)
        plain = {k: v for k, v in (config or {}).items() if k in expected and not components.is_identity(v)}
        return cls(**cls._completed({**plain, **overrides}, expected, "the config"))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write every component to its own folder and then `model_index.json`; each file is written atomically."""
        check_known(f"{type(self).__name__}.save_pretrained", kwargs, ("variant", "max_shard_size"))
        if not safe_serialization:
            raise ConfigError("safe_serialization=False would write pickles; only safetensors are written")
        if os.path.isfile(save_directory):
            raise RepositoryError(f"{os.fspath(save_directory)!r} is a file; save_pretrained needs a folder")
        for name, component in self.components.items():
            if component is not None:
                components.save(component, Path(save_directory) / name, variant, max_shard_size)
        self.save_config(save_directory)

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, **options: Any) -> str:
        """Fetch the files that `from_pretrained` would read and return their folder.

        Takes the options of `from_pretrained`. Nothing is built, but configs and indexes are read to know the files.
        """
        load = {name: options.pop(name, None) for name in _LOAD_OPTIONS}
        source, given = Source.from_options(pretrained_model_name, options)
        path = source.file(str(cls.config_name))
        source, index = source.pinned(path), read_json(path)
        check_known(f"{cls.__name__}.download", given, index)
        for name, entry in index.items():
            if components.is_identity(entry) and entry[1] is not None and name not in given:
                components.fetch(source, name, entry, load["variant"], load["use_safetensors"])
        return os.fspath(path.parent)

    # ---- components ----------------------------------------------------------------------------------------------

    @property
    def components(self) -> dict[str, Any]:
        """The components by name; `OtherPipeline(**pipe.components)` shares them."""
        return {name: getattr(self, name) for name, entry in self.config.items() if components.is_identity(entry)}

    @property
    def _models(self) -> dict[str, torch.nn.Module]:
        return {name: one for name, one in self.components.items() if isinstance(one, torch.nn.Module)}

    def to(self: P, *args: Any, **kwargs: Any) -> P:
        """Move every network to a device and/or dtype, in any order as in `torch.nn.Module.to`; returns itself."""
        from ..runtime.precision import resolve_device, resolve_dtype

        kwargs.pop("silence_dtype_warnings", None)
        try:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
            resolve_device(device), resolve_dtype(dtype)
        except (RuntimeError, TypeError, ConfigError) as error:
            given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
            raise InputError(
                f"to({given}): {str(error).splitlines()[0]}; a device, a dtype or both are needed"
            ) from error
        for model in self._models.values():
            model.to(*args, **kwargs)
        if self.device.type == "cpu" and self.dtype == torch.float16:
            logger.warning("most CPUs compute float16 very slowly; bfloat16 or float32 is usually faster there")
        return self

    @property
    def device(self) -> torch.device:
        """The device of the first network."""
        return next((p.device for one in self._models.values() for p in one.parameters()), torch.device("cpu"))

    @property
    def _execution_device(self) -> torch.device:
        return self.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first network."""
        return next((p.dtype for one in self._models.values() for p in one.parameters()), torch.float32)

    @property
    def name_or_path(self) -> str | None:
        return self.config.get("_name_or_path")

    # ---- showing -------------------------------------------------------------------------------------------------

    def _repr_html_(self) -> str:
        """A table of the components for notebooks."""
        rows = [
            "".join(f"<td>{html.escape(cell)}</td>" for cell in (name, *components.describe(component)))
            for name, component in self.components.items()
        ]
        head = "".join(f"<th>{title}</th>" for title in ("component", "class", "parameters", "dtype", "device"))
        origin = f" from <code>{html.escape(str(self.name_or_path))}</code>" if self.name_or_path else ""
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<b>{type(self).__name__}</b>{origin}<table><tr>{head}</tr>{body}</table>"

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options of tqdm for every progress bar of this pipeline, such as `disable=True`."""
        self._progress_bar_config = kwargs

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A progress bar over `iterable`, or of `total` steps."""
        from tqdm.auto import tqdm

        from ..utils.logging import is_progress_bar_enabled

        if iterable is None and total is None:
            raise InputError("progress_bar needs iterable or total")
        settings = {"disable": not is_progress_bar_enabled(), **getattr(self, "_progress_bar_config", {})}
        return tqdm(iterable, total=total, **settings)

    @staticmethod
    def numpy_to_pil(images: Any) -> list:
        """Pictures from an array (B, H, W, C) in [0, 1]."""
        from ..utils import numpy_to_pil

        return numpy_to_pil(images)

    # ---- memory --------------------------------------------------------------------------------------------------

    def enable_attention_slicing(self, slice_size: Any = "auto") -> None:
        """Accepted for scripts' sake: fused attention never holds the matrix that slicing would save."""

    def disable_attention_slicing(self) -> None:
        """The counterpart of `enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Accepted for scripts' sake: torch's fused attention, which is always on, needs no more memory."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """The counterpart of `enable_xformers_memory_efficient_attention`."""

    def enable_vae_slicing(self) -> None:
        """Let the VAE take one image at a time."""
        self._vae().enable_slicing()

    def disable_vae_slicing(self) -> None:
        self._vae().disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Let the VAE work in overlapping tiles."""
        self._vae().enable_tiling()

    def disable_vae_tiling(self) -> None:
        self._vae().disable_tiling()

    def _vae(self) -> Any:
        vae = self.components.get("vae")
        if vae is None:
            raise UnknownArgumentError(f"{type(self).__name__} has no VAE")
        return vae


def known_pipelines() -> dict[str, type]:
    """The pipeline classes that `model_index.json` may name."""
    package = importlib.import_module(__name__.split(".", maxsplit=1)[0])
    found = {name: getattr(package, name) for name in package.__all__ if name.endswith("Pipeline")}
    found.pop("DiffusionPipeline", None)
    return found
