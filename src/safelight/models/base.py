"""What every network has: a config, weights in a repository, a dtype and a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..configuration import ConfigMixin, read_json, write_atomically


class ModelMixin(nn.Module, ConfigMixin):
    """Base of the networks."""

    config_name = "config.json"
    _weights_name: ClassVar[str] = "diffusion_pytorch_model"
    _old_keys: ClassVar[Sequence[tuple[str, str]]] = ()
    _ignored_keys: ClassVar[Sequence[str]] = ()

    __repr__ = nn.Module.__repr__

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, subfolder: str = "", **kwargs: Any) -> Any:
        folder = Path(path) / subfolder
        model = cls.from_config(read_json(folder / "config.json"), **kwargs)
        model.load_state_dict(load_file(folder / f"{cls._weights_name}.safetensors"))
        return model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        self.save_config(save_directory)
        state = {key: value.contiguous() for key, value in self.state_dict().items()}
        path = Path(save_directory) / f"{self._weights_name}.safetensors"
        write_atomically(path, lambda temporary: save_file(state, temporary, metadata={"format": "pt"}))
