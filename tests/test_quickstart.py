"""The classic quickstart gives the same pictures here as with diffusers, after a change of one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .helpers.tree import ROOT

SCRIPT = ROOT / "examples" / "quickstart.py"
PAGE = ROOT / "docs" / "quickstart.md"
PICTURES = {
    "text to image": ["squirrel", "squirrel_euler", "squirrel_unet"],
    "step by step": [f"step_{i:04}" for i in range(50, 1001, 50)],
}


def run(script: Path, *arguments: Path) -> str:
    """What the script prints."""
    command = [sys.executable, str(script), *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, stable_diffusion: Path, ddpm_root: Path) -> dict:
    """Library -> (what the script printed, the folder of its pictures)."""
    folder = tmp_path_factory.mktemp("quickstart")
    theirs = folder / "with_diffusers.py"
    source, changed = re.subn(r"^from safelight import", "from diffusers import", SCRIPT.read_text(), flags=re.M)
    assert changed == 1
    theirs.write_text(source)
    return {
        name: (run(script, stable_diffusion, ddpm_root, folder / name), folder / name)
        for name, script in (("safelight", SCRIPT), ("diffusers", theirs))
    }


def pixels(folder: Path, names: list[str]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / f"{name}.png")).astype(int) for name in names])


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_those_of_diffusers(runs: dict, kind: str) -> None:
    ours, theirs = (pixels(runs[name][1], PICTURES[kind]) for name in ("safelight", "diffusers"))
    difference = np.abs(ours - theirs)
    assert ours.std(axis=(1, 2, 3)).min() > 5, "an empty picture proves nothing"
    assert difference.max() <= 1
    assert (difference.max(axis=-1) > 0).mean() <= 0.001


def test_pictures_differ_among_themselves(runs: dict) -> None:
    for names in PICTURES.values():
        assert len({picture.tobytes() for picture in pixels(runs["safelight"][1], names)}) == len(names)


def _shown(printed: str, class_name: str) -> dict:
    """The JSON that `print(object)` shows after the class name."""
    start = printed.index(f"{class_name} {{") + len(class_name) + 1
    return json.JSONDecoder().raw_decode(printed[start:])[0]


@pytest.mark.parametrize("class_name", ["StableDiffusionPipeline", "DDPMScheduler"])
def test_objects_show_themselves_alike(runs: dict, class_name: str) -> None:
    ours, theirs = (_shown(runs[name][0], class_name) for name in ("safelight", "diffusers"))
    for shown in (ours, theirs):
        shown.pop("_name_or_path", None)
    # transformers 5 calls it by another name where torchvision is missing.
    if theirs.get("feature_extractor") == ["transformers", "CLIPImageProcessorPil"]:
        theirs["feature_extractor"][1] = "CLIPImageProcessor"
    assert ours == theirs


def test_the_page_tells_what_runs() -> None:
    """The page's code, put together, is the script (but for the script's own docstring)."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]

    script = SCRIPT.read_text(encoding="utf-8").split('"""', 2)[2]
    assert lines("\n".join(blocks)) == lines(script)
