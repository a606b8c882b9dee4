"""The config classes under the module name that scripts import them from."""

from __future__ import annotations

from .configuration import ConfigMixin, register_to_config
from .configuration import FrozenConfig as FrozenDict

__all__ = ["ConfigMixin", "FrozenDict", "register_to_config"]
