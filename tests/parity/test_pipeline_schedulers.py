"""Text-to-image with every scheduler that fits: the pictures are those of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import safelight
from safelight.schedulers.base import COMPATIBLE_NAMES

from ..helpers.compare import assert_same_pictures

# The Brownian noise of DPMSolverSDE comes from a seed in its config; EDM's scheduler is for other networks.
SEEDED = {"DPMSolverSDEScheduler": {"noise_sampler_seed": 5}}
NAMES = [*COMPATIBLE_NAMES, "LCMScheduler", "TCDScheduler", "SASolverScheduler"]


@pytest.fixture(scope="module")
def pipelines(stable_diffusion: Path) -> list[Any]:
    pair = [library.DiffusionPipeline.from_pretrained(stable_diffusion) for library in (safelight, diffusers)]
    for pipe in pair:
        pipe.set_progress_bar_config(disable=True)
    return pair


@pytest.mark.parametrize("name", [name for name in NAMES if name != "EDMEulerScheduler"])
def test_pictures_are_the_same(pipelines: list[Any], name: str) -> None:
    pictures = []
    for library, pipe in zip((safelight, diffusers), pipelines, strict=True):
        first = pipe.scheduler
        pipe.scheduler = getattr(library, name).from_config(first.config, **SEEDED.get(name, {}))
        generator = torch.Generator().manual_seed(3)
        made = pipe(["a red cat", "🦊"], num_inference_steps=9, guidance_scale=5.0, generator=generator)
        pictures.append(made.images)
        pipe.scheduler = first
    assert_same_pictures(*pictures)
