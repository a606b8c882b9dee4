"""Every scheduler: a step is a function of its arguments, and runs on one object do not see each other."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import safelight
from safelight.errors import InputError
from safelight.saved import pack, unpack

from ..helpers.solvers import NAMES, SOLVERS, Solver, predicted, run_from, started, taken

solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def _generators(seed: int = 5) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + k) for k in range(2)]


def _values(value: Any) -> Iterator[Any]:
    """The tensors, numbers and strings in nested values, in order."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _values(item)
    elif isinstance(value, dict):
        yield from _values(list(value.items()))
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(value.copy())
    else:
        yield value


def _needed(solver: Solver, scheduler: Any) -> dict[str, Any]:
    """The options that timetables take."""
    return {name: value for name, value in solver.options.items() if name in scheduler.timetable_options}


def _frozen(value: Any) -> list[Any]:
    return [one.clone() if isinstance(one, torch.Tensor) else one for one in _values(value)]


def _same(a: Any, b: Any) -> bool:
    """Whether all in two values is equal to the last bit."""
    one, other = list(_values(a)), list(_values(b))
    return len(one) == len(other) and all(
        x.dtype == y.dtype and torch.equal(x, y)
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
        else type(x) is type(y) and x == y
        for x, y in zip(one, other, strict=True)
    )


def test_every_scheduler_is_here() -> None:
    assert len(NAMES) > 20
    assert {solver.name for solver in SOLVERS.values()} == set(NAMES)
    assert set(NAMES) == {name for name in safelight.__all__ if name.endswith("Scheduler")}


def test_the_comparison_sees_a_bit() -> None:
    one = torch.tensor([1.0, 2.0])
    other = torch.nextafter(one, one + 1)
    assert _same({"a": (one, [3])}, {"a": (one.clone(), [3])})
    assert not _same((one,), (other,))
    assert not _same((one,), (one.double(),))
    assert not _same((one, 1), (one,))


@solvers
def test_a_repeated_step_gives_the_same(solver: Solver) -> None:
    scheduler = solver.make()
    scheduler.set_timesteps(solver.steps or 5, **_needed(solver, scheduler))
    plan = solver.plan(scheduler)
    x, state, generators = started(plan), solver.state(scheduler, plan), _generators()
    for i in range(len(plan)):
        y, (first, second) = predicted(scheduler, plan, i, x), (_copied(generators), _copied(generators))
        noise = scheduler.draw_noise(plan, i, x, first, y.dtype)
        assert _same(noise, scheduler.draw_noise(plan, i, x, second, y.dtype))
        assert _same([one.get_state() for one in first], [one.get_state() for one in second])
        generators = first

        inputs = {"y": y, "x": x, "state": state, "noise": noise, "own": scheduler.__dict__, "plan": plan.__dict__}
        before, attributes = _frozen(inputs), dict(scheduler.__dict__)
        result = scheduler.advance(plan, i, y, x, state, noise)
        kept = _frozen(result)
        assert _same(result, scheduler.advance(plan, i, y, x, state, noise))
        assert _same(result, kept)
        assert _same(before, inputs)
        assert attributes.keys() == scheduler.__dict__.keys()
        assert all(value is scheduler.__dict__[key] for key, value in attributes.items())
        x, state, _ = result
    assert torch.isfinite(x).all()


def _copied(generators: list[torch.Generator]) -> list[torch.Generator]:
    return [torch.Generator().set_state(one.get_state()) for one in generators]


def _plans(solver: Solver, scheduler: Any) -> list[Any]:
    """Of different lengths, and once with all options at their defaults."""
    plain = scheduler.plan(solver.steps or 8, **_needed(solver, scheduler))
    return [solver.plan(scheduler, 9), solver.plan(scheduler, 6), plain]


@solvers
def test_interleaved_runs_are_those_alone(solver: Solver) -> None:
    scheduler = solver.make()
    plans = _plans(solver, scheduler)
    alone = [run_from(scheduler, plan, solver.state(scheduler, plan), _generators(k)) for k, plan in enumerate(plans)]
    runs = [[started(plan), solver.state(scheduler, plan), _generators(k)] for k, plan in enumerate(plans)]
    for i in range(max(map(len, plans))):
        for plan, run, expected in zip(plans, runs, alone, strict=True):
            if i < len(plan):
                run[0], run[1], _ = taken(scheduler, plan, i, *run)
                assert torch.equal(run[0], expected[i])


@solvers
def test_eight_threads_share_one_object(solver: Solver) -> None:
    scheduler = solver.make()
    plans = _plans(solver, scheduler)
    alone = [run_from(scheduler, plans[k % 3], solver.state(scheduler, plans[k % 3]), _generators(k)) for k in range(8)]
    together = threading.Barrier(8)

    def work(k: int) -> list[torch.Tensor]:
        together.wait()
        return run_from(scheduler, plans[k % 3], solver.state(scheduler, plans[k % 3]), _generators(k))

    with ThreadPoolExecutor(8) as pool:
        for expected, found in zip(alone, pool.map(work, range(8)), strict=True):
            assert _same(expected, found)


def _holds(solver: Solver, kind: Callable[[Any], bool]) -> bool:
    return any(kind(value) for value in solver.config.values())


def _cannot_be_saved(solver: Solver) -> bool:
    return _holds(solver, lambda value: callable(value) or isinstance(value, safelight.SchedulerMixin))


@solvers
def test_a_run_that_is_saved_at_every_step_goes_on_as_if_it_were_not(solver: Solver) -> None:
    scheduler = solver.make()
    plan = solver.plan(scheduler)
    if _cannot_be_saved(solver):
        with pytest.raises(InputError, match=r"config\.(tau_func|solver_p) is of type"):
            pack(scheduler, plan)
        return
    expected, generators = run_from(scheduler, plan, solver.state(scheduler, plan), _generators()), _generators()
    x, state, made = started(plan), solver.state(scheduler, plan), scheduler
    for i in range(len(plan)):
        tensors, description = pack(made, plan, state)
        text = json.dumps(description, allow_nan=False)
        made, plan, again = unpack(load(save(tensors)), json.loads(text))
        assert type(made) is type(scheduler)
        assert type(again) is type(state)
        assert _same(again, state)
        assert {**made.config, "_use_default_values": None} == {**scheduler.config, "_use_default_values": None}
        x, state, _ = taken(made, plan, i, x, again, generators)
        assert torch.equal(x, expected[i])
