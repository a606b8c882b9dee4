"""A class's constructor signature is its config schema: registered, frozen, and written to and read from JSON."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from .errors import ConfigError, FrozenConfigError, RepositoryError, UnknownArgumentError, nearest

logger = logging.getLogger(__name__)

# The release of the file format's reference implementation that our files match; written where it writes its own.
FORMAT_VERSION = "0.42.1"

_REGISTRY: dict[str, type[ConfigMixin]] = {}

# Keys that describe the file rather than the object.
_HIDDEN = ("_use_default_values", "_ignore_files", "_pre_quantization_dtype")

T = TypeVar("T", bound="ConfigMixin")


class FrozenConfig(dict):
    """A dict that can be read as attributes and never changes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            public = [key for key in self if not key.startswith("_")]
            raise AttributeError(f"config has no entry {name!r}; {nearest(name, public)}") from None

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        key = next((str(a) for a in args if isinstance(a, str)), "key")
        raise FrozenConfigError(
            f"config is frozen, so {key!r} cannot be set: build a new object with "
            f"`from_config(obj.config, {key}=value)`, or call `register_to_config({key}=value)` inside its class"
        )

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = _refuse
    setdefault = pop = popitem = update = clear = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenConfig, (dict(self),))


def init_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The named parameters of the constructor, without `self`, `*args` and `**kwargs`."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(inspect.signature(cls.__init__).parameters.items())[1:]  # type: ignore[misc]
    return {name: p for name, p in parameters if p.kind not in variadic}


def check_known(what: str, names: Any, valid: Any) -> None:
    """Raise `UnknownArgumentError` for the first of `names` that is not in `valid`."""
    for name in names:
        if name not in valid:
            raise UnknownArgumentError(f"{what} has no argument {name!r}; {nearest(name, valid)}")


def to_json(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value.as_posix() if isinstance(value, Path) else value


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file; a missing, broken or wrongly shaped file is a `RepositoryError` that names it."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise RepositoryError(f"there is no file {os.fspath(path)!r}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{os.fspath(path)!r} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise RepositoryError(f"{os.fspath(path)!r} holds a JSON {type(content).__name__}, but an object is needed")
    return content


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Call each `write(temporary)` and, when all are done, move the results to their paths.

    A crash leaves every file as it was, but for the moment in which several are moved.
    """
    parts = {
        target: target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part") for target in writers
    }
    try:
        for target, write in writers.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            parts[target].touch()
            permissions = parts[target].stat().st_mode
            write(parts[target])
            parts[target].chmod(permissions)  # safetensors puts files in place that only their owner may read
            with open(parts[target], "rb+") as file:
                os.fsync(file.fileno())
        for target, part in parts.items():
            os.replace(part, target)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and move the result to `path`: a crash leaves the old file or the new one."""
    write_together({Path(path): write})


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    text = json.dumps(to_json(content), indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class ConfigMixin:
    """An object built from, and described by, a JSON-like config.

    `config_name` is the file it lives in. Decorate `__init__` with `register_to_config`.
    """

    config_name: ClassVar[str | None] = None
    ignore_for_config: ClassVar[list[str]] = []
    has_compatibles: ClassVar[bool] = False
    _deprecated_kwargs: ClassVar[list[str]] = []
    _config: FrozenConfig  # `config` itself, for places that run often

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.__name__] = cls

    @property
    def config(self) -> FrozenConfig:
        """The frozen constructor arguments (a property, so that nothing can be put in its place)."""
        return self.__dict__.get("_config", FrozenConfig())

    def register_to_config(self, **values: Any) -> None:
        """Add `values` to the config; for use inside the class, as scripts' own classes do."""
        if self.config_name is None:
            raise ConfigError(f"{type(self).__name__} must define `config_name`, the file its config is stored in")
        values.pop("kwargs", None)
        self.__dict__["_config"] = FrozenConfig({**self.config, **values})

    @classmethod
    def _compatible_names(cls) -> list[str]:
        """Names of classes whose config keys may stand in ours when it was converted from theirs."""
        return []

    @classmethod
    def from_config(cls: type[T], config: Mapping[str, Any] | None = None, **overrides: Any) -> T:
        """Build an object from a config, its own or that of a related class; `overrides` win.

        Values that were only defaults in the source do not override this class's defaults. Keys that this class does
        not have are kept for the way back, and reported once if no related class has them either.
        `return_unused_kwargs=True` returns `(object, unused)`. Raises `UnknownArgumentError` for an unknown override.
        """
        if config is None or isinstance(config, (str, os.PathLike)):
            raise ConfigError(
                f"{cls.__name__}.from_config takes a config (a dict, or `other.config`), not {config!r}; "
                f"to read one from a path or repository use {cls.__name__}.from_pretrained or .load_config"
            )
        return_unused = overrides.pop("return_unused_kwargs", False)
        expected = init_parameters(cls)
        names = [name for name in expected if name not in cls.ignore_for_config]
        defaulted = set(config.get("_use_default_values", ()))
        source = {key: value for key, value in config.items() if key not in defaulted and key not in _HIDDEN}

        arguments = {name: source[name] for name in names if name in source}
        unused = {key: overrides.pop(key) for key in list(overrides) if return_unused and key not in expected}
        check_known(cls.__name__, overrides, expected)
        built = cls(**{**arguments, **overrides})
        # The originals' hidden entries ride along so that converting back restores them.
        hidden = {key: value for key, value in source.items() if key not in expected}
        if "_class_name" in hidden:
            hidden["_class_name"] = cls.__name__
        built.__dict__["_config"] = FrozenConfig({**hidden, **built.config})
        cls._report_unknown(source, expected)
        return (built, unused) if return_unused else built  # type: ignore[return-value]

    @classmethod
    def _report_unknown(cls, source: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        origin = source.get("_class_name")
        related = [*cls._compatible_names(), *([origin] if isinstance(origin, str) else [])]
        known = {name for key in related if key in _REGISTRY for name in init_parameters(_REGISTRY[key])}
        unknown = [key for key in source if not (key.startswith("_") or key in expected or key in known)]
        unknown = [key for key in unknown if key not in ("quantization_config", "auto_map", *cls._deprecated_kwargs)]
        if unknown:
            logger.warning(
                "%s does not know the config entries %s; they are kept and written back, but have no effect",
                cls.__name__,
                {key: source[key] for key in unknown},
            )

    def to_json_string(self) -> str:
        """The config as sorted JSON, with `_class_name` and `_diffusers_version`.

        Raises `ConfigError` for an entry that JSON has no form for, such as a function.
        """

        def refuse(value: Any) -> None:
            name = next((key for key, held in self.config.items() if held is value), "an entry")
            raise ConfigError(
                f"{name} is {value!r}, which a config file cannot hold; save a {type(self).__name__} made "
                f"`from_config({{**obj.config, {name!r}: None}})`, and give {name} again when loading"
            )

        return self._as_json(refuse)

    def _as_json(self, otherwise: Callable[[Any], Any]) -> str:
        values = {key: to_json(value) for key, value in self.config.items() if key not in _HIDDEN}
        values.update(_class_name=type(self).__name__, _diffusers_version=FORMAT_VERSION)
        return json.dumps(values, indent=2, sort_keys=True, default=otherwise) + "\n"

    def to_json_file(self, path: str | os.PathLike) -> None:
        write_json(path, json.loads(self.to_json_string()))

    def save_config(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write the config to `save_directory/config_name`, atomically."""
        check_known(f"{type(self).__name__}.save_config", kwargs, ())
        if os.path.isfile(save_directory):
            raise RepositoryError(f"{os.fspath(save_directory)!r} is a file; save_config needs a folder")
        assert self.config_name is not None
        self.to_json_file(Path(save_directory) / self.config_name)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **options: Any) -> Any:
        """Read the config of a local folder or a repository (the options are those of `from_pretrained`) as a dict.

        `return_unused_kwargs=True` returns `(config, unused)`. Raises `RepositoryError` where there is none.
        """
        from .repository.hub import Source  # the hub client is needed only by those who load

        return_unused = options.pop("return_unused_kwargs", False)
        source, unused = Source.from_options(pretrained_model_name_or_path, options)
        if not return_unused:
            check_known(f"{cls.__name__}.load_config", unused, Source.option_names())
        config = read_json(source.file(str(cls.config_name)))
        return (config, unused) if return_unused else config

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self._as_json(repr)}"


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate `__init__` so that its arguments become the object's frozen config.

    Raises `UnknownArgumentError` with the nearest valid name for an argument that is not in the signature.
    """
    signature = inspect.signature(init)
    variadic = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

    @functools.wraps(init)
    def wrapper(self: ConfigMixin, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self, ConfigMixin):
            raise ConfigError(f"@register_to_config needs {type(self).__name__} to derive from ConfigMixin")
        private = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("_")}
        parameters = init_parameters(type("_", (), {"__init__": init}))
        if not variadic:
            check_known(type(self).__name__, kwargs, parameters)
        given = signature.bind_partial(self, *args, **kwargs).arguments
        keep = [name for name in parameters if name not in self.ignore_for_config]
        values = {name: given.get(name, parameters[name].default) for name in keep}
        missing = [name for name, value in values.items() if value is inspect.Parameter.empty]
        if missing:
            raise ConfigError(f"{type(self).__name__} needs the argument {missing[0]!r}, which has no default")
        defaults = [name for name in keep if name not in given]
        self.register_to_config(**private, **values, **({"_use_default_values": defaults} if defaults else {}))
        init(self, *args, **kwargs)

    return wrapper
