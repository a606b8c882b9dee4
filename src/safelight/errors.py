"""Every error that Safelight raises on purpose.

All derive from `SafelightError` and also from the built-in that a script would expect, so both `except SafelightError`
and `except ValueError` work. A message names the culprit, shows the value and says what would be valid.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real


class SafelightError(Exception):
    """The root of the hierarchy."""


class ConfigError(SafelightError, ValueError):
    """A constructor argument or a config value is not valid."""


class UnknownArgumentError(ConfigError, TypeError):
    """An argument has a name that the callee does not know."""


class FrozenConfigError(SafelightError, AttributeError, TypeError):
    """Someone assigned to a frozen config."""


class InputError(SafelightError, ValueError):
    """An argument of a call (prompt, size, steps, tensor shape, …) is not valid."""


class RepositoryError(SafelightError, OSError):
    """A repository or a file in it is missing, unreachable or malformed."""


class WeightsError(RepositoryError):
    """A weight file is truncated or corrupt, or does not fit the model."""


class UnsafeFileError(RepositoryError):
    """A file could run code when it is read (a pickle), or names a class that is not known."""


class NonFiniteError(SafelightError, ArithmeticError):
    """NaN or infinity turned up in latents, an image or a loss."""


class MissingDependencyError(SafelightError, ImportError):
    """An optional package is needed and not installed."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The tail of an error message: the valid name closest to `name`, or else all of them."""
    choices = sorted(str(choice) for choice in valid)
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid names: {', '.join(choices)}" if choices else "there are no valid names"


def check_choice(what: str, value: object, valid: Iterable[str], error: type[SafelightError] = ConfigError) -> None:
    """Raise `error` unless `value` is one of `valid`."""
    choices = list(valid)
    if value not in choices:
        raise error(f"{what} is {value!r}; {nearest(str(value), choices)}")


def check_positive(name: str, value: object) -> None:
    """Raise `ConfigError` unless `value` is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ConfigError(f"{name} is {value!r}; a positive number is needed")


def check_count(name: str, value: object) -> None:
    """Raise `ConfigError` unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; a positive integer is needed")
