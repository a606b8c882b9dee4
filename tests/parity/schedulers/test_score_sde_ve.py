"""Predictor-corrector runs on the variance-exploding SDE, as the pipeline of diffusers makes them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import safelight

from ...helpers.compare import relative_difference
from ...helpers.pairwise import pairwise, singles
from ...helpers.sampling import SHAPE, network, start

NAME = "ScoreSdeVeScheduler"
STEPS = [10, 5, 30, 50]
# The arguments of the constructor, of `set_timesteps` and `set_sigmas`, and the dtype.
TABLE: dict[str, list[Any]] = {
    "num_train_timesteps": [2000, 300],
    "snr": [0.15, 0.3],
    "sigma_min": [0.01, 0.05],
    "sigma_max": [1348.0, 50.0],
    "sampling_eps": [1e-5, 0.02],
    "correct_steps": [1, 0, 2],
    "num_inference_steps": [*STEPS, 2, 301],
    "set_timesteps.sampling_eps": [None, 1e-3, 0.2],
    "set_sigmas.sigma_min": [None, 0.02],
    "set_sigmas.sigma_max": [None, 90.0],
    "dtype": [torch.float32, torch.float64],
}
CASES = [*singles(TABLE), *pairwise(TABLE, lambda combination: True)]
CASES += [
    one | {"num_inference_steps": n} for n in STEPS[1:] for one in singles(TABLE) if "num_inference_steps" not in one
]


def _made(library: Any, config: dict[str, Any]) -> Any:
    constructor = inspect.signature(getattr(diffusers, NAME)).parameters
    scheduler = getattr(library, NAME)(**{key: config[key] for key in constructor})
    steps = config["num_inference_steps"]
    scheduler.set_timesteps(steps, config["set_timesteps.sampling_eps"])
    ends = {key: config[f"set_sigmas.{key}"] for key in ("sigma_min", "sigma_max")}
    scheduler.set_sigmas(steps, **ends)
    return scheduler


def _score(x: torch.Tensor, sigma: Any) -> torch.Tensor:
    """About what a network says of images with values of order one."""
    return -network(x / (sigma**2 + 1) ** 0.5, sigma) / sigma


def _run(scheduler: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """Every x of a run, and every mean."""
    generator, x, seen = torch.Generator().manual_seed(1), start(scheduler.init_noise_sigma).to(dtype), []
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
        for _ in range(scheduler.config.correct_steps):
            x = scheduler.step_correct(_score(x, sigma), x, generator=generator).prev_sample
            seen.append(x)
        x, mean = scheduler.step_pred(_score(x, sigma), t, x, generator=generator, return_dict=False)
        seen += [x, mean]
    return seen


def test_the_table_has_every_option() -> None:
    theirs, ours = getattr(diffusers, NAME), getattr(safelight, NAME)
    constructor = inspect.signature(theirs).parameters
    assert {name: one.default for name, one in inspect.signature(ours).parameters.items()} == {
        name: one.default for name, one in constructor.items()
    }
    assert all(TABLE[name][0] == one.default for name, one in constructor.items())
    arguments = {*inspect.signature(theirs.set_timesteps).parameters, *inspect.signature(theirs.set_sigmas).parameters}
    assert arguments == {"self", "num_inference_steps", "sampling_eps", "device", "sigma_min", "sigma_max"}
    for method in ("set_timesteps", "set_sigmas", "step_pred", "step_correct", "add_noise", "get_adjacent_sigma"):
        positions = [*inspect.signature(getattr(theirs, method)).parameters]
        assert [*inspect.signature(getattr(ours, method)).parameters][: len(positions)] == positions, method


@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_step_equals(case: int) -> None:
    config = {name: values[0] for name, values in TABLE.items()} | CASES[case]
    ours, theirs = _made(safelight, config), _made(diffusers, config)
    for table in ("timesteps", "sigmas", "discrete_sigmas"):
        torch.testing.assert_close(getattr(ours, table), getattr(theirs, table), rtol=1e-6, atol=0)
    runs = [_run(scheduler, config["dtype"]) for scheduler in (ours, theirs)]
    assert all(x.dtype == config["dtype"] for x in runs[0])
    assert relative_difference(*map(torch.stack, runs)) <= 1e-5
    scales = [x.abs().max() for x in runs[1]]
    wrong = [float((a - b).abs().max() / s) for a, b, s in zip(*runs, scales, strict=True)]
    assert max(wrong) <= 2e-5  # also of the small x at the end


def test_attributes_before_set_timesteps() -> None:
    ours, theirs = (getattr(library, NAME)(num_train_timesteps=40) for library in (safelight, diffusers))
    assert torch.equal(ours.timesteps, theirs.timesteps)
    for table in ("sigmas", "discrete_sigmas"):
        torch.testing.assert_close(getattr(ours, table), getattr(theirs, table), rtol=1e-6, atol=0)
    assert (ours.init_noise_sigma, ours.order, len(ours)) == (theirs.init_noise_sigma, theirs.order, len(theirs))
    assert [kind.__name__ for kind in theirs.compatibles] == [kind.__name__ for kind in ours.compatibles]
    index = torch.tensor([0, 7, 39])
    adjacent = [one.get_adjacent_sigma(index, index / 40) for one in (ours, theirs)]
    torch.testing.assert_close(*adjacent, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_noise(dtype: torch.dtype) -> None:
    results = []
    for library in (safelight, diffusers):
        scheduler = getattr(library, NAME)()
        clean, noise = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (3, 4))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            results.append([scheduler.add_noise(clean, one, torch.tensor([3, 1990])) for one in (noise, None)])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert relative_difference(one, other) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    results = []
    for library in (safelight, diffusers):
        scheduler = getattr(library, NAME)(sigma_max=20.0, snr=0.1)
        scheduler.set_timesteps(6)
        scheduler.set_sigmas(6)
        results.append(torch.stack([x.to(dtype).float() for x in _run_rounded(scheduler, dtype)]))
    assert relative_difference(*results) <= 16 * torch.finfo(dtype).eps


def _run_rounded(scheduler: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    generator, x, seen = torch.Generator().manual_seed(1), start(20.0).to(dtype), []
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
        x = scheduler.step_correct(_score(x.float(), sigma).to(dtype), x, generator=generator).prev_sample.to(dtype)
        x = scheduler.step_pred(_score(x.float(), sigma).to(dtype), t, x, generator=generator).prev_sample.to(dtype)
        seen.append(x)
    return seen


def test_generators_for_each_image_and_tuples() -> None:
    results = []
    for library in (safelight, diffusers):
        scheduler = getattr(library, NAME)()
        x, y, t = start(3.0, 1), start(0.3, 2), scheduler.timesteps[4]
        generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
        (corrected,) = scheduler.step_correct(y, x, generators, False)
        results.append(torch.stack([corrected, *scheduler.step_pred(y, t, corrected, generators, False)]))
    assert relative_difference(*results) <= 1e-6


def test_steps_by_value_and_in_any_order() -> None:
    pair = [getattr(library, NAME)() for library in (safelight, diffusers)]
    for i in (1999, 3, 3, 1000):
        x, y = start(3.0, i), start(0.3, 2)
        t = pair[1].timesteps[i].item()
        one, other = (s.step_pred(y, t, x, torch.Generator().manual_seed(1)).prev_sample_mean for s in pair)
        assert relative_difference(one, other) <= 1e-6


def test_files(tmp_path: Path) -> None:
    ours, theirs = (getattr(library, NAME)(snr=0.2) for library in (safelight, diffusers))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    texts = [(tmp_path / name / "scheduler_config.json").read_text() for name in ("ours", "theirs")]
    assert texts[0] == texts[1]
    assert safelight.ScoreSdeVeScheduler.from_pretrained(tmp_path / "theirs").config.snr == 0.2
