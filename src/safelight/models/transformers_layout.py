"""Objects of our own that live in repositories under transformers' file names and config schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from ..configuration import ConfigMixin, to_json
from .base import ModelMixin


class TransformersConfig(ConfigMixin):
    """A config in transformers' schema: no `_class_name`, but entries of its own that name the class."""

    @classmethod
    def _report_unknown(cls, source: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Every such config carries dozens of entries that concern other uses; they are kept without a word."""

    def _identity(self) -> dict[str, Any]:
        """The entries that say what the object is."""
        raise NotImplementedError

    def to_json_string(self) -> str:
        values = {key: to_json(value) for key, value in self.config.items() if not key.startswith("_")}
        return json.dumps({**values, **self._identity()}, indent=2, sort_keys=True) + "\n"


class TransformersModel(TransformersConfig, ModelMixin):
    """A model stored as transformers stores it, its weights in `model.safetensors`."""

    _weights_name = "model"
    _model_type: ClassVar[str]

    def _identity(self) -> dict[str, Any]:
        # Versions 4 and 5 both read `torch_dtype`; "dtype" is its name in 5, and must not contradict it.
        dtype = str(self.dtype).removeprefix("torch.")
        newer = {"dtype": dtype} if "dtype" in self.config else {}
        return {"architectures": [type(self).__name__], "model_type": self._model_type, "torch_dtype": dtype, **newer}

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """`enable_gradient_checkpointing` by transformers' name; the options, which choose its kind, have no effect."""
        self.enable_gradient_checkpointing()

    def gradient_checkpointing_disable(self) -> None:
        self.disable_gradient_checkpointing()
