"""Architectures: one file each; module names are the checkpoints' key names.

`from safelight.models import AutoencoderKL` works for every model; each is imported on first use.
"""

from __future__ import annotations

from .. import names_below

__getattr__ = names_below(__name__)
