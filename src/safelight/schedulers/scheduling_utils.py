"""The names that scripts import from a module of this name."""

from __future__ import annotations

from enum import Enum

from .base import COMPATIBLE_NAMES, SchedulerMixin, SchedulerOutput

__all__ = ["SCHEDULER_CONFIG_NAME", "KarrasDiffusionSchedulers", "SchedulerMixin", "SchedulerOutput"]

SCHEDULER_CONFIG_NAME = SchedulerMixin.config_name

KarrasDiffusionSchedulers = Enum("KarrasDiffusionSchedulers", {name: i for i, name in enumerate(COMPATIBLE_NAMES, 1)})  # type: ignore[misc]
