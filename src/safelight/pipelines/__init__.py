"""Whole models, from a request to pictures: one file per family, and the one denoising loop.

`from safelight.pipelines import DDIMPipeline` works for every pipeline; each is imported on first use.
"""

from __future__ import annotations

from .. import names_below

__getattr__ = names_below(__name__)
