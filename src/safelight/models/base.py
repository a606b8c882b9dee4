"""What every network has: a config, weights in a repository, a dtype and a device."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..configuration import ConfigMixin, check_known, init_parameters, read_json
from ..errors import ConfigError, RepositoryError

logger = logging.getLogger(__name__)

M = TypeVar("M", bound="ModelMixin")


_RANDOM_FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_)


class _Uninitialised(TorchFunctionMode):
    """Leaves out the initialisation of weights that a file is about to replace, in this thread.

    On the meta device it would do nothing, but the first random fill there imports torch's compiler, for seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RANDOM_FILLS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class ModelMixin(nn.Module, ConfigMixin):
    """Base of the networks, ours and scripts' own.

    A subclass decorates its `__init__` with `register_to_config`. `from_pretrained` builds it on the meta device,
    without memory or random numbers, and puts the file's tensors in place; what a constructor computes and no file
    holds (non-persistent buffers) is then computed by building it once for real, so such buffers are best avoided.
    """

    config_name = "config.json"
    _weights_name: ClassVar[str] = "diffusion_pytorch_model"
    # (pattern, replacement) for old spellings of keys, and patterns of keys that are harmless leftovers.
    _old_keys: ClassVar[Sequence[tuple[str, str]]] = ()
    _ignored_keys: ClassVar[Sequence[str]] = ()
    # Names of modules whose weights stay float32 whatever dtype is asked for.
    _keep_in_fp32: ClassVar[Sequence[str]] = ()
    _supports_gradient_checkpointing: ClassVar[bool] = True

    __repr__ = nn.Module.__repr__

    @classmethod
    def from_pretrained(
        cls: type[M],
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device: torch.device | str | None = None,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        **options: Any,
    ) -> M:
        """Load a network, in eval mode, from a folder or a repository on the Hub.

        `dtype` (or `torch_dtype`) is float32 unless given; "auto" picks what `device` is fast at. `variant` names the
        files (`….fp16.safetensors`); `use_safetensors=False` reads pickles, as plain tensors. `options`: `subfolder`,
        `revision`, `cache_dir`, `local_files_only`, `token`, `force_download`, `device_map` (where it names one
        device), and constructor arguments that override the config. Raises `RepositoryError` where files are missing,
        `WeightsError` where they are broken or do not fit the config (`strict=False` lets keys be missing or
        unexpected), `UnsafeFileError` for a pickle nobody asked for.
        """
        from ..repository.hub import Source
        from ..repository.weights import fill, find_weights, load_into
        from ..runtime.precision import resolve_device, resolve_dtype

        device = resolve_device(device, options.pop("device_map", None))
        source, overrides = Source.from_options(pretrained_model_name_or_path, options)
        known = init_parameters(cls)
        arguments = ("dtype", "torch_dtype", "variant", "use_safetensors", "device", "strict")
        check_known(f"{cls.__name__}.from_pretrained", overrides, (*known, *arguments, *Source.option_names()))
        path = source.file(str(cls.config_name))
        source, config = source.pinned(path), read_json(path)
        asked = torch_dtype if dtype is None else dtype
        wanted = resolve_dtype(asked, device) or torch.float32
        if asked == "auto" and wanted == torch.float16 and cls._overflows_in_float16(config):
            wanted = torch.float32
        files = find_weights(source, cls._weights_name, variant, use_safetensors)
        model = cls._on_meta({**config, "_name_or_path": str(source)}, overrides)
        left = load_into(
            model,
            files,
            dtype=wanted,
            device=device,
            old_keys=cls._old_keys,
            ignored_keys=cls._ignored_keys,
            keep_in_fp32=cls._keep_in_fp32,
            strict=strict,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            where=repr(str(source)),
        )
        if left:
            fill(model, left, model._as_constructed(), wanted, device)
        return model.eval()

    @classmethod
    def _overflows_in_float16(cls, config: Mapping[str, Any]) -> bool:
        """Whether a model of this config needs more range than float16 has, so that "auto" must not choose it."""
        return False

    @classmethod
    def _on_meta(cls: type[M], config: dict[str, Any], overrides: dict[str, Any]) -> M:
        with torch.device("meta"), _Uninitialised():
            return cls.from_config(config, **overrides)

    def _as_constructed(self: M) -> M:
        """Another model of this config, with the values that the constructor gives."""
        return type(self)(**{key: value for key, value in self.config.items() if key in init_parameters(type(self))})

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the config and the weights (safetensors; in shards beyond `max_shard_size`), each file atomically."""
        from ..repository.weights import save_weights

        check_known(f"{type(self).__name__}.save_pretrained", kwargs, ("variant", "max_shard_size"))
        if not safe_serialization:
            raise ConfigError("safe_serialization=False would write a pickle; only safetensors are written")
        if os.path.isfile(save_directory):
            raise RepositoryError(f"{os.fspath(save_directory)!r} is a file; save_pretrained needs a folder")
        if not is_main_process:
            return
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_weights(self.state_dict(), save_directory, self._weights_name, variant, max_shard_size)
        self.save_config(save_directory)

    def to(self: M, *args: Any, **kwargs: Any) -> M:
        """As `torch.nn.Module.to`; what `_keep_in_fp32` names keeps float32 and only moves."""
        kept = {
            name: tensor.data for name, tensor in self.named_parameters() if {*name.split(".")} & {*self._keep_in_fp32}
        }
        super().to(*args, **kwargs)
        for name, tensor in self.named_parameters():
            if name in kept and tensor.dtype != kept[name].dtype:
                tensor.data = kept[name].to(tensor.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters, or of those that train, or of those outside `nn.Embedding`."""
        embeddings = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else ()
        return sum(
            p.numel() for p in self.parameters() if (p.requires_grad or not only_trainable) and id(p) not in embeddings
        )

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
        self._set_gradient_checkpointing(True)

    def disable_gradient_checkpointing(self) -> None:
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, value: bool) -> None:
        able = [module for module in self.modules() if hasattr(module, "gradient_checkpointing")]
        if value and not able:
            raise ConfigError(f"{type(self).__name__} has no part that supports gradient checkpointing")
        for module in able:
            module.gradient_checkpointing = value  # type: ignore[assignment]

    def enable_xformers_memory_efficient_attention(self, *args: Any, **kwargs: Any) -> None:
        """Accepted for scripts' sake: torch's fused attention, which is always on, needs no more memory."""
