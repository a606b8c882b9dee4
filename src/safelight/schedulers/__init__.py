"""The mathematics of sampling: tensors in, tensors out; no networks, no files.

`from safelight.schedulers import DDIMScheduler` works for every scheduler; each is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    package = importlib.import_module(__name__.rpartition(".")[0])
    if not package._HOME.get(name, "").startswith("schedulers."):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(package, name)
