"""How much code a text-to-image step runs through, and what threads that share a pipeline get, beside diffusers.

    python benchmarks/structure.py [--json FILE]

A small repository in Stable Diffusion 1.5's layout; speed plays no part. Both libraries are traced in the same way: the
files and functions of the package that run from one forward of the UNet to the next, and the lines of those files. Then
eight threads call one pipeline object, each with its own steps and seed, and the pictures are compared with those that
the same calls give one after the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

import safelight

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.helpers.repositories import write_stable_diffusion
from tests.helpers.trace import Tracer

THREADS = 8


def lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def step(pipe: Any, package: Path) -> dict[str, int]:
    tracer = Tracer(package)
    passages = tracer.passages(lambda: pipe("a cat", num_inference_steps=4), type(pipe.unet).forward)
    files = tracer.files(passages[2].since)
    return {
        "files in a step": len(files),
        "functions in a step": len(passages[2].since),
        "lines of those files": lines([package / file for file in files]),
        "files from the call to the forward": len(passages[2].stack),
    }


def shared(pipe: Any) -> int:
    """How many of the threads' pictures are, bit for bit, those made alone."""

    def picture(k: int) -> np.ndarray | None:
        try:
            generator = torch.Generator().manual_seed(k)
            return np.asarray(pipe("a cat", num_inference_steps=6 + k, generator=generator).images[0])
        except Exception as error:
            return print(f"thread {k}: {error}", file=sys.stderr)

    alone = [picture(k) for k in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(picture, range(THREADS)))
    return sum(b is not None and np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def measure(library: Any, repository: Path) -> dict[str, int]:
    package = Path(library.__file__).parent
    pipe = library.StableDiffusionPipeline.from_pretrained(
        repository, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return {
        **step(pipe, package),
        "lines of the package": lines(sorted(package.rglob("*.py"))),
        f"pictures right of {THREADS}, shared by {THREADS} threads": shared(pipe),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        repository = write_stable_diffusion(Path(folder), safety_checker=False)
        results = {library.__name__: measure(library, repository) for library in (safelight, diffusers)}
    print(f"{'':<46}{'safelight':>12}{'diffusers':>12}")
    for name, figure in results["safelight"].items():
        print(f"{name:<46}{figure:>12,}{results['diffusers'][name]:>12,}")
    if options.json:
        options.json.write_text(json.dumps({"diffusers": diffusers.__version__, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
