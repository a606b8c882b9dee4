"""The way through the code is short: traced at run time, in files of the package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from safelight import DiffusionPipeline

from ..helpers.tree import PACKAGE

TO_THE_FORWARD = 6
IN_ONE_STEP = 12


def _file(frame: FrameType) -> str | None:
    """The frame's file in the package; None for other code, and for a module being imported."""
    path = Path(frame.f_code.co_filename)
    imported = frame.f_code.co_name == "<module>"
    return None if imported or not path.is_relative_to(PACKAGE) else path.relative_to(PACKAGE).as_posix()


def _traced(call: Callable[[], Any], forward: Any) -> tuple[list[set[str]], list[set[str]]]:
    """Per entry of `forward` during `call`: the files on the stack, and the files run since the entry before it."""
    stacks: list[set[str]] = []
    between: list[set[str]] = [set()]

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        if frame.f_code is forward.__code__:
            stack, caller = set(), frame
            while caller is not None:
                stack.add(_file(caller))
                caller = caller.f_back
            stacks.append(stack - {None})
            between.append(set())
        between[-1].add(_file(frame))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return stacks, [files - {None} for files in between]


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerDiscreteScheduler", "DDIMScheduler", "DDPMScheduler"])
def test_text_to_image_is_a_short_way(stable_diffusion: Path, scheduler: str) -> None:
    import safelight

    pipe = DiffusionPipeline.from_pretrained(stable_diffusion)
    pipe.set_progress_bar_config(disable=True)
    solver = getattr(safelight, scheduler).from_config(pipe.scheduler.config)
    stacks, between = _traced(
        lambda: pipe("a cat", num_inference_steps=4, seed=0, scheduler=solver), type(pipe.unet).forward
    )
    assert len(stacks) >= 4
    assert "pipelines/denoise.py" in stacks[0]
    assert len(stacks[0]) <= TO_THE_FORWARD, sorted(stacks[0])
    # From one forward to the next: the forward itself, guidance, the solver's step, the loop, the next input.
    for step in between[1:-1]:
        assert {"models/unet_2d_condition.py", "pipelines/denoise.py"} <= step
        assert len(step) <= IN_ONE_STEP, sorted(step)
