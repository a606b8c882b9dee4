"""Microseconds per scheduler step through the familiar surface, beside diffusers, in one process.

    python benchmarks/schedulers.py [--json FILE] [--rounds 20] [NAME …]

A 1x4x64x64 float32 latent, one thread, 50 steps (fewer for few-step samplers); every scheduler there is, with its
defaults but for latent diffusion's betas. The two libraries alternate A B B A after a warm-up, and the median of the
rounds is printed with the ratio.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch

import safelight
from safelight.schedulers.base import Scheduler

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = 50
# Where the defaults cannot be run: settings of the class, and arguments of `set_timesteps`.
SETTINGS: dict[str, dict[str, Any]] = {
    "DPMSolverSDEScheduler": {"noise_sampler_seed": 0},
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
}
TIMETABLES: dict[str, dict[str, Any]] = {
    "CMStochasticIterativeScheduler": {"num_inference_steps": 20},
    "SCMScheduler": {"num_inference_steps": 50, "intermediate_timesteps": None},
}


def names() -> list[str]:
    """Every scheduler of the package."""
    found = (getattr(safelight, name) for name in safelight.__all__ if name.endswith("Scheduler"))
    return [cls.__name__ for cls in found if issubclass(cls, Scheduler)]


def microseconds(library: Any, name: str) -> float:
    """One run, timed without the making of the plan."""
    cls = getattr(library, name)
    accepted = inspect.signature(cls).parameters
    scheduler = cls(**{key: value for key, value in CONFIG.items() if key in accepted} | SETTINGS.get(name, {}))
    scheduler.set_timesteps(**TIMETABLES.get(name, {"num_inference_steps": STEPS}))
    sample = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    output = 0.1 * sample
    step = scheduler.step_pred if name == "ScoreSdeVeScheduler" else scheduler.step
    takes = inspect.signature(step).parameters
    given = {
        "generator": torch.Generator().manual_seed(1),
        "original_image": sample,
        "mask": torch.ones_like(sample),
    }
    extra = {key: value for key, value in given.items() if key in takes}
    timesteps = list(scheduler.timesteps)[: -1 if name == "SCMScheduler" else None]
    following = [*timesteps[1:], None]
    start = time.perf_counter()
    for t, prev_timestep in zip(timesteps, following, strict=True):
        if "prev_timestep" in takes:
            extra["prev_timestep"] = prev_timestep
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, t)
        sample = step(output, t, sample, **extra).prev_sample
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
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these schedulers")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # what the reference says about itself at construction
    results = {}
    print(f"{'scheduler':<36}{'safelight µs':>14}{'diffusers µs':>14}{'ratio':>8}")
    for name in options.names or names():
        results[name] = row = measure(name, options.rounds)
        print(f"{name:<36}{row['safelight_us']:>14}{row['diffusers_us']:>14}{row['ratio']:>8}", flush=True)
    if options.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
        options.json.write_text(json.dumps({"versions": versions, "steps": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
