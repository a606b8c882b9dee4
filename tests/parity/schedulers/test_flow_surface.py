"""The familiar surface of flow solvers and consistency samplers against diffusers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import safelight

from ...helpers.compare import relative_difference
from ...helpers.sampling import SHAPE, familiar_run, network

EULER, HEUN, LCM = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"
SCM, CM = "SCMScheduler", "CMStochasticIterativeScheduler"
FLOWS = [EULER, HEUN, LCM]
NAMES = [*FLOWS, SCM, CM]
TOLERANCE = 1e-5


def _both(name: str, steps: int | None = None, **config: Any) -> tuple[Any, Any]:
    pair = [getattr(library, name)(**config) for library in (safelight, diffusers)]
    for scheduler in pair if steps else []:
        scheduler.set_timesteps(steps, **({"intermediate_timesteps": None} if name == SCM else {}))
    return tuple(pair)


def _noise(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _seeded() -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(1)}


@pytest.mark.parametrize("config", [{}, {"shift": 3.0}])
@pytest.mark.parametrize("name", FLOWS)
def test_flow_attributes(name: str, config: dict[str, Any]) -> None:
    ours, theirs = _both(name, **config)
    assert relative_difference(ours.timesteps, theirs.timesteps) <= 1e-7
    assert relative_difference(ours.sigmas[:-1], theirs.sigmas) <= 1e-7  # theirs ends without the final 0 so far
    assert ours.sigmas[-1] == 0
    assert (ours.sigma_min, ours.sigma_max) == pytest.approx((theirs.sigma_min, theirs.sigma_max))
    assert (ours.order, len(ours), ours.step_index, ours.begin_index) == (theirs.order, len(theirs), None, None)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(9)
    assert relative_difference(ours.sigmas, theirs.sigmas) <= 1e-7
    assert relative_difference(ours.timesteps, theirs.timesteps) <= 1e-7
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    assert ours.num_inference_steps == theirs.num_inference_steps == 9


@pytest.mark.parametrize("name", [EULER, LCM])
def test_the_shift_can_be_set_and_used_alone(name: str) -> None:
    ours, theirs = _both(name, shift=2.0)
    t = np.linspace(0.9, 0.1, 7)
    for scheduler in (ours, theirs):
        assert scheduler.shift == 2.0
        scheduler.set_shift(4.0)
        assert scheduler.shift == 4.0
        scheduler.set_timesteps(6)
    assert relative_difference(ours.sigmas, theirs.sigmas) <= 1e-7
    for kind in ("exponential", "linear"):
        ours, theirs = _both(name, time_shift_type=kind, shift_terminal=0.2)
        for values in (t, torch.from_numpy(t)):
            for power in (1.0, 2.0):
                shifted = [s.time_shift(0.8, power, values) for s in (ours, theirs)]
                assert relative_difference(*map(torch.as_tensor, shifted)) <= 1e-7
            stretched = [torch.as_tensor(s.stretch_shift_to_terminal(values)) for s in (ours, theirs)]
            assert relative_difference(*stretched) <= 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("begin", [None, 4])
@pytest.mark.parametrize("name", [EULER, LCM])
def test_scaling_noise(name: str, begin: int | None, stepped: bool, dtype: torch.dtype) -> None:
    results = []
    for scheduler in _both(name, 7, shift=3.0):
        if begin is not None:
            scheduler.set_begin_index(begin)
        if stepped:
            scheduler.step(_noise(1), scheduler.timesteps[4], _noise(2))
        results.append(scheduler.scale_noise(_noise(3).to(dtype), scheduler.timesteps[[4, 2]], _noise(4).to(dtype)))
        assert results[-1].dtype == dtype
    assert relative_difference(*(one.float() for one in results)) <= 1e-6


def test_scaling_noise_for_heun() -> None:
    for i in (0, 2, 5):
        results = [s.scale_noise(_noise(3), s.timesteps[i], _noise(4)) for s in _both(HEUN, 5, shift=3.0)]
        assert relative_difference(*results) <= 1e-6


@pytest.mark.parametrize("begin", [0, 2, 4, 6])
@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_starts_inside_the_timetable(name: str, by_index: bool, begin: int) -> None:
    runs = []
    for scheduler in _both(name, 8):
        if by_index:
            scheduler.set_begin_index(begin)
        runs.append(familiar_run(scheduler, _seeded(), begin, end=-1 if name == SCM else None))
    assert relative_difference(runs[0].samples, runs[1].samples) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    results = []
    for scheduler in _both(name, 5):
        x = (_noise(0) * (80.0 if name == CM else 1.0)).to(dtype)
        for t in scheduler.timesteps[: -1 if name == SCM else None]:
            out = scheduler.step(network(x.float() / (80.0 if name == CM else 1.0), t).to(dtype), t, x, **_seeded())
            # the noise of the circle is in float32, and so is what it is added to
            assert out.prev_sample.dtype == (torch.float32 if name == SCM else dtype)
            x = out.prev_sample.to(dtype)
        results.append(x.float())
    assert relative_difference(*results) <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_timestep_for_each_token(stochastic: bool) -> None:
    tokens = torch.tensor([[1000.0, 700.0, 333.3], [500.25, 1.0, 0.0]])
    results = []
    for scheduler in _both(EULER, 5, stochastic_sampling=stochastic):
        x, rows = _noise(1, (2, 3, 4)), []
        for t in scheduler.timesteps:
            y = network(x, t)
            out = scheduler.step(y, t, x, **_seeded(), per_token_timesteps=torch.minimum(t, tokens))
            by_position = scheduler.step(
                y, scheduler.timesteps[-1], x, 0.0, 0.0, 1.0, 1.0, _seeded()["generator"], tokens, False
            )
            scheduler._step_index -= 1
            rows += [out.prev_sample, by_position[0]]
            x = out.prev_sample
        results.append(torch.stack(rows))
    assert relative_difference(*results) <= 1e-6


def test_scale_factors_can_be_set() -> None:
    runs = []
    for scheduler in _both(LCM, 4):
        scheduler.set_scale_factors([1.5, 1.5, 2.0], "bilinear")
        runs.append(familiar_run(scheduler, _seeded()).samples)
        scheduler.set_timesteps(3)
        scheduler.set_scale_factors(None, None)
        runs.append(familiar_run(scheduler, _seeded()).samples)
    assert runs[0].numel() > runs[1].numel()
    assert relative_difference(runs[0], runs[2]) <= TOLERANCE
    assert relative_difference(runs[1], runs[3]) <= TOLERANCE


def test_angles_expanded_over_the_batch() -> None:
    runs = []
    for scheduler in _both(SCM, 3):
        assert scheduler.timesteps.shape == (4,)
        assert scheduler.init_noise_sigma == 1.0
        scheduler.set_begin_index(0)
        x, generator = _noise(1) * 0.5, torch.Generator().manual_seed(1)
        for t in scheduler.timesteps[:-1]:
            x, denoised = scheduler.step(network(x, t), t.expand(len(x)), x, generator=generator, return_dict=False)
        runs.append(torch.stack([x, denoised]))
    assert relative_difference(*runs) <= TOLERANCE


def test_consistency_attributes_and_noising() -> None:
    for steps in (None, 7):
        ours, theirs = _both(CM, steps)
        assert relative_difference(ours.timesteps, theirs.timesteps) <= 1e-12
        assert ours.timesteps.dtype == theirs.timesteps.dtype == torch.float64
        assert relative_difference(ours.sigmas[: len(theirs.sigmas)], theirs.sigmas.float()) <= 1e-7
        assert (float(ours.init_noise_sigma), len(ours)) == (80.0, len(theirs))
    results = []
    for scheduler in (ours, theirs):
        x, t = _noise(1), scheduler.timesteps[3]
        results.append(scheduler.scale_model_input(x, t))
        assert scheduler.step_index == 3
        scheduler.set_timesteps(7)
        results.append(scheduler.add_noise(x, _noise(2), scheduler.timesteps[[5, 2]]))
        results.append(torch.stack(scheduler.get_scalings_for_boundary_condition(torch.tensor([0.002, 0.3, 80.0]))))
        results.append(torch.as_tensor(scheduler.sigma_to_t([0.1, 3.0])))
    for one, other in zip(results[:4], results[4:], strict=True):
        assert relative_difference(one, other) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_signatures_configs_and_files(name: str, tmp_path: Path) -> None:
    ours, theirs = _both(name)
    for method in ("step", "set_timesteps"):
        shown, known = (inspect.signature(getattr(s, method)).parameters for s in (ours, theirs))
        assert [key for key in shown if key in known][:3] == [*known][:3]
        assert {*known} <= {*shown}
    assert ours.compatibles == [type(ours)]
    assert not theirs.compatibles or name in {one.__name__ for one in theirs.compatibles}
    ours.save_pretrained(tmp_path / "ours" / "scheduler")
    theirs.save_pretrained(tmp_path / "theirs")
    text = [(tmp_path / where / "scheduler_config.json").read_text() for where in ("ours/scheduler", "theirs")]
    assert text[0] == text[1]
    read = getattr(safelight, name).from_pretrained(tmp_path / "theirs")
    again = getattr(diffusers, name).from_pretrained(tmp_path / "ours", subfolder="scheduler")
    entries = [{k: v for k, v in s.config.items() if not k.startswith("_")} for s in (ours, theirs, read, again)]
    assert entries[0] == entries[1] == entries[2] == entries[3]
