"""The name that scripts import from a module of this name."""

from __future__ import annotations

from .base import ModelMixin

__all__ = ["ModelMixin"]
