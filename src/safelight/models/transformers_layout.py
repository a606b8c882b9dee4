"""Models of our own that live in repositories under transformers' file names and config schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from ..configuration import to_json
from .base import ModelMixin


class TransformersModel(ModelMixin):
    """A model stored as transformers stores it: `model.safetensors`, and a config.json without `_class_name`."""

    _weights_name = "model"
    _model_type: ClassVar[str]

    @classmethod
    def _report_unknown(cls, source: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Every such config carries dozens of entries about text generation; they are kept without a word."""

    def to_json_string(self) -> str:
        """The config in transformers' schema, with the class in `architectures`, as sorted JSON."""
        values = {key: to_json(value) for key, value in self.config.items() if not key.startswith("_")}
        values.pop("dtype", None)  # the newer name of `torch_dtype`, which every version reads
        values.update(
            architectures=[type(self).__name__],
            model_type=self._model_type,
            torch_dtype=str(self.dtype).removeprefix("torch."),
        )
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """`enable_gradient_checkpointing` by transformers' name; the options, which choose its kind, have no effect."""
        self.enable_gradient_checkpointing()

    def gradient_checkpointing_disable(self) -> None:
        self.disable_gradient_checkpointing()
