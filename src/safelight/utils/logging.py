"""How much the library says: the verbosity of its loggers, and whether progress bars show.

A process that calls nothing of this keeps Python's own behaviour: warnings go to stderr, or wherever the application
sends them. The first call puts a handler of our own on the library's logger.
"""

from __future__ import annotations

import logging
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, NOTSET, WARN, WARNING

__all__ = [
    "CRITICAL",
    "DEBUG",
    "ERROR",
    "FATAL",
    "INFO",
    "NOTSET",
    "WARN",
    "WARNING",
    "add_handler",
    "disable_default_handler",
    "disable_progress_bar",
    "disable_propagation",
    "enable_default_handler",
    "enable_explicit_format",
    "enable_progress_bar",
    "enable_propagation",
    "get_logger",
    "get_verbosity",
    "is_progress_bar_enabled",
    "remove_handler",
    "reset_format",
    "set_verbosity",
    "set_verbosity_debug",
    "set_verbosity_error",
    "set_verbosity_info",
    "set_verbosity_warning",
]

_ROOT = logging.getLogger(__name__.split(".", maxsplit=1)[0])
_EXPLICIT = "[%(levelname)s|%(filename)s:%(lineno)s] %(asctime)s >> %(message)s"
_handler = logging.StreamHandler()
_progress_bars = True


def get_logger(name: str | None = None) -> logging.Logger:
    """The logger of that name; the library's own, from which all of its loggers inherit, without one."""
    return _ROOT if name is None else logging.getLogger(name)


def get_verbosity() -> int:
    """The level from which the library speaks: 10 debug, 20 info, 30 warning, 40 error, 50 critical."""
    return _ROOT.getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Let the library's messages of at least this level through, to stderr."""
    enable_default_handler()
    _ROOT.setLevel(verbosity)


def set_verbosity_debug() -> None:
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    set_verbosity(ERROR)


def enable_default_handler() -> None:
    """Write messages to stderr ourselves, and no longer through the application's root logger (no message twice)."""
    if _handler not in _ROOT.handlers:
        _ROOT.addHandler(_handler)
        _ROOT.propagate = False


def disable_default_handler() -> None:
    """Leave messages to the application's own handlers."""
    _ROOT.removeHandler(_handler)
    _ROOT.propagate = True


def add_handler(handler: logging.Handler) -> None:
    _ROOT.addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    _ROOT.removeHandler(handler)


def enable_propagation() -> None:
    """Let messages reach the handlers of the application's root logger."""
    _ROOT.propagate = True


def disable_propagation() -> None:
    _ROOT.propagate = False


def enable_explicit_format() -> None:
    """Show level, place and time before every message."""
    if not _ROOT.handlers:
        enable_default_handler()
    for handler in _ROOT.handlers:
        handler.setFormatter(logging.Formatter(_EXPLICIT))


def reset_format() -> None:
    for handler in _ROOT.handlers:
        handler.setFormatter(None)


def is_progress_bar_enabled() -> bool:
    """Whether pipelines and loaders show progress bars."""
    return _progress_bars


def enable_progress_bar() -> None:
    global _progress_bars  # noqa: PLW0603 (a setting of the process, as scripts know it)
    _progress_bars = True


def disable_progress_bar() -> None:
    """Show no progress bars in this process, but where a pipeline's own `set_progress_bar_config` asks for one."""
    global _progress_bars  # noqa: PLW0603
    _progress_bars = False
