"""The way through the code is short: traced at run time, in files of the package."""

from __future__ import annotations

from pathlib import Path

import pytest

import safelight

from ..helpers.trace import Tracer
from ..helpers.tree import PACKAGE

TO_THE_FORWARD = 6
IN_ONE_STEP = 12


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerDiscreteScheduler", "DDIMScheduler", "DDPMScheduler"])
def test_text_to_image_is_a_short_way(stable_diffusion: Path, scheduler: str) -> None:
    pipe = safelight.DiffusionPipeline.from_pretrained(stable_diffusion)
    pipe.set_progress_bar_config(disable=True)
    solver = getattr(safelight, scheduler).from_config(pipe.scheduler.config)
    tracer = Tracer(PACKAGE)
    passages = tracer.passages(
        lambda: pipe("a cat", num_inference_steps=4, seed=0, scheduler=solver), type(pipe.unet).forward
    )
    assert len(passages) >= 4
    for passage in passages:
        assert {"pipelines/denoise.py", "models/unet_2d_condition.py"} <= passage.stack
        assert len(passage.stack) <= TO_THE_FORWARD, sorted(passage.stack)
    # From one forward to the next: the forward itself, guidance, the solver's step, the loop, the next input.
    for passage in passages[1:]:
        files = tracer.files(passage.since)
        assert {"models/unet_2d_condition.py", "nn/attention.py", "pipelines/denoise.py", "schedulers/base.py"} <= files
        assert len(files) <= IN_ONE_STEP, sorted(files)
