"""Microseconds per scheduler step through the familiar surface, beside diffusers, in one process.

    python benchmarks/schedulers.py [--json FILE]

A 1x4x64x64 float32 latent, one thread, 50 steps; the two libraries alternate A B B A after a warm-up, and the median of
the rounds is printed with the ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

import safelight

NAMES = ("EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler", "DDPMScheduler")
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = 50


def microseconds(library: Any, name: str) -> float:
    """One run of 50 steps, timed without the making of the plan."""
    scheduler = getattr(library, name)(**CONFIG)
    scheduler.set_timesteps(STEPS)
    sample = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    output = 0.1 * sample
    generator = torch.Generator().manual_seed(1)
    extra = {"generator": generator} if name == "DDPMScheduler" else {}
    timesteps = scheduler.timesteps
    start = time.perf_counter()
    for t in timesteps:
        scheduler.scale_model_input(sample, t)
        sample = scheduler.step(output, t, sample, **extra).prev_sample
    return (time.perf_counter() - start) / len(timesteps) * 1e6


def measure(name: str, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {"safelight": [], "diffusers": []}
    for library in (safelight, diffusers):
        microseconds(library, name)
    for _ in range(rounds):
        for library in (safelight, diffusers, diffusers, safelight):
            times[library.__name__].append(microseconds(library, name))
    ours, theirs = (statistics.median(times[key]) for key in ("safelight", "diffusers"))
    return {"safelight_us": round(ours, 1), "diffusers_us": round(theirs, 1), "ratio": round(ours / theirs, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {name: measure(name, options.rounds) for name in NAMES}
    print(f"{'scheduler':<26}{'safelight µs':>14}{'diffusers µs':>14}{'ratio':>8}")
    for name, row in results.items():
        print(f"{name:<26}{row['safelight_us']:>14}{row['diffusers_us']:>14}{row['ratio']:>8}")
    if options.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
        options.json.write_text(json.dumps({"versions": versions, "steps": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
