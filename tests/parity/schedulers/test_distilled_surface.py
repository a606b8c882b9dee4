"""The familiar surface of the samplers for networks distilled for few steps, against diffusers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import safelight
from safelight.errors import InputError

from ...helpers.compare import relative_difference
from ...helpers.sampling import SHAPE, network, pure_run, start

LCM, TCD = "LCMScheduler", "TCDScheduler"
SECOND = {LCM: "denoised", TCD: "pred_noised_sample"}  # what `step` returns beside the sample
CUSTOM = [999, 759, 499, 259]
TOLERANCE = 1e-5

pytestmark = pytest.mark.parametrize("name", [LCM, TCD])


def _both(name: str, *steps: Any, **timetable: Any) -> tuple[Any, Any]:
    pair = tuple(getattr(library, name)() for library in (safelight, diffusers))
    for scheduler in pair if steps or timetable else ():
        scheduler.set_timesteps(*steps, **timetable)
    return pair


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _run(scheduler: Any, begin: int = 0, generator: Any = None, dtype: torch.dtype = torch.float32) -> list[Any]:
    """What each step returns, as tuples."""
    generator, x, steps = generator or torch.Generator().manual_seed(1), start(1.0).to(dtype), []
    for t in scheduler.timesteps[begin:]:
        output = network(x.float(), t).to(dtype) if dtype.itemsize < 4 else network(x, t)
        steps.append(scheduler.step(output, t, x, generator=generator, return_dict=False))
        x = steps[-1][0]
    return steps


def _difference(runs: list[list[Any]]) -> float:
    ours, theirs = ([torch.stack(values).float() for values in zip(*run, strict=True)] for run in runs)
    return max(relative_difference(one, other) for one, other in zip(ours, theirs, strict=True))


def test_attributes(name: str) -> None:
    ours, theirs = _both(name)
    for table in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "timesteps"):
        assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
    for steps in ((), (6,)):
        if steps:
            ours.set_timesteps(*steps)
            theirs.set_timesteps(*steps)
        for attribute in ("order", "num_inference_steps", "step_index", "begin_index", "custom_timesteps"):
            assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
        assert ours.init_noise_sigma == theirs.init_noise_sigma
    assert len(ours) == len(theirs)
    ours.set_timesteps(timesteps=CUSTOM)
    assert ours.custom_timesteps


def test_timetables(name: str) -> None:
    arguments: list[Any] = [
        ((7,), {}),
        ((7, None, 100), {}),
        ((7, "cpu", 30, None, 0.7), {}),
        ((50,), {}),
        ((), {"timesteps": CUSTOM, "strength": 0.5}),
        ((3,), {"strength": 0.1}),
    ]
    for steps, timetable in arguments:
        ours, theirs = _both(name, *steps, **timetable)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert ours.timesteps.dtype == theirs.timesteps.dtype
        assert ours.num_inference_steps == theirs.num_inference_steps


@pytest.mark.parametrize("second", ["pure", "theirs"])
def test_what_a_step_returns(name: str, second: str) -> None:
    ours, theirs = _both(name, 6)
    if second == "theirs":
        assert _difference([_run(ours), _run(theirs)]) <= TOLERANCE
        x, t = _noise(1), ours.timesteps[0]
        outputs = [scheduler.step(_noise(2), t, x) for scheduler in _both(name, 6)]
        assert [*outputs[0].keys()] == [*outputs[1].keys()] == ["prev_sample", SECOND[name]]
        return
    pure = pure_run(ours, ours._active, torch.Generator().manual_seed(1))
    steps = _run(ours)
    assert torch.equal(pure.samples[1:], torch.stack([step[0] for step in steps]))
    if name == LCM:
        assert torch.equal(pure.originals, torch.stack([step[1] for step in steps]))


def test_generators_end_where_theirs_do(name: str) -> None:
    runs, after = [], []
    for scheduler in _both(name, 6):
        generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
        runs.append(_run(scheduler, generator=generators))
        after.append(torch.stack([torch.randn(3, generator=generator) for generator in generators]))
    assert _difference(runs) <= TOLERANCE
    assert torch.equal(*after)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("begin", [1, 4, 7])
def test_a_run_that_starts_inside_the_timetable(name: str, begin: int, explicit: bool) -> None:
    pair = _both(name, 8)
    for scheduler in pair if explicit else ():
        scheduler.set_begin_index(begin)
    assert _difference([_run(scheduler, begin) for scheduler in pair]) <= TOLERANCE


def test_custom_timesteps_cut_by_strength_end_in_noise_unless_corrected(name: str) -> None:
    pair = _both(name, timesteps=CUSTOM, strength=0.5)
    runs = [_run(scheduler) for scheduler in pair]
    assert _difference(runs) <= TOLERANCE
    last, second = runs[0][-1]
    assert torch.equal(last, second) == (name == TCD)  # whose noise has no weight at t = 0
    pair[0].set_timesteps(timesteps=CUSTOM, strength=0.5, corrected=True)
    right = _run(pair[0])
    assert torch.equal(*right[-1])
    assert torch.equal(right[-1][1], second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    runs = [_run(scheduler, dtype=dtype) for scheduler in _both(name, 5)]
    assert {value.dtype for step in runs[0] for value in step} == {dtype}
    assert _difference(runs) <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_add_noise_and_velocity(name: str, dtype: torch.dtype) -> None:
    ours, theirs = _both(name)
    clean, noise, times = _noise(4).to(dtype), _noise(5).to(dtype), torch.tensor([5, 950])
    for method in ("add_noise", "get_velocity"):
        assert torch.equal(*(getattr(scheduler, method)(clean, noise, times) for scheduler in (ours, theirs)))


def test_previous_timestep(name: str) -> None:
    ours, theirs = _both(name)
    assert int(ours.previous_timestep(7)) == int(theirs.previous_timestep(7)) == 6
    ours, theirs = _both(name, 5)
    for t in theirs.timesteps:
        assert int(ours.previous_timestep(t)) == int(theirs.previous_timestep(t))


def test_boundary_scalings(name: str) -> None:
    if name == TCD:
        assert not hasattr(diffusers.TCDScheduler, "get_scalings_for_boundary_condition_discrete")
        return
    for given in (0, 19, 999, torch.tensor([0, 3, 500])):
        pairs = [scheduler.get_scalings_for_boundary_condition_discrete(given) for scheduler in _both(name)]
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_inference_steps": 51},
        {"num_inference_steps": 6, "strength": 0.1},
        {"num_inference_steps": 4, "timesteps": CUSTOM},
        {"timesteps": [999, 999, 3]},
        {"timesteps": [1000, 500]},
        {"timesteps": [500, -1]},
        {"num_inference_steps": 4, "strength": 0.0},
        {"num_inference_steps": 4, "strength": 1.1},
        {"num_inference_steps": 4, "original_inference_steps": 0},
        {},
    ],
)
def test_timetables_that_cannot_be(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        _both(name)[0].set_timesteps(**arguments)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_outside_its_range(name: str, eta: float) -> None:
    scheduler = getattr(safelight, name)()
    scheduler.set_timesteps(4)
    with pytest.raises((InputError, TypeError), match="eta"):
        scheduler.step(_noise(1), scheduler.timesteps[0], _noise(2), eta=eta)


def test_signatures(name: str) -> None:
    for method in ("step", "set_timesteps"):
        classes = (getattr(library, name) for library in (safelight, diffusers))
        ours, theirs = (inspect.signature(getattr(cls, method)) for cls in classes)
        assert [*ours.parameters][: len(theirs.parameters)] == [*theirs.parameters]


def _entries(scheduler: Any) -> dict[str, Any]:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize("source", ["DDIMScheduler", "EulerDiscreteScheduler", LCM, TCD])
def test_configs_of_other_classes_and_back(name: str, source: str, tmp_path: Path) -> None:
    given = {"beta_start": 0.0009, "steps_offset": 1, "prediction_type": "v_prediction"}
    chains = []
    for library in (safelight, diffusers):
        first = getattr(library, source)(**given)
        second = getattr(library, name).from_config(first.config)
        chains.append([second, getattr(library, source).from_config(second.config)])
        second.save_pretrained(tmp_path / library.__name__)
    for one, other in zip(*chains, strict=True):
        assert _entries(one) == _entries(other)
        assert [cls.__name__ for cls in one.compatibles][:1] == [type(one).__name__]
    text = [(tmp_path / library / "scheduler_config.json").read_text() for library in ("safelight", "diffusers")]
    assert text[0] == text[1]
    again = getattr(safelight, name).from_pretrained(tmp_path / "diffusers")
    assert _entries(again) == _entries(chains[0][0])
