"""The mathematics of sampling: tensors in, tensors out; no networks, no files.

`from safelight.schedulers import DDIMScheduler` works for every scheduler; each is imported on first use.
"""

from __future__ import annotations

from .. import names_below

__getattr__ = names_below(__name__)
