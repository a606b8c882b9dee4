"""Every scheduler: no step reads a tensor's value, so that on a GPU the CPU never waits for it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ..helpers.conversions import Conversion, Conversions
from ..helpers.sampling import SHAPE, network
from ..helpers.solvers import SOLVERS, Solver, predicted, started, variance

solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)

X = torch.tensor([0.5, 2.0])
ONE = torch.tensor(1.0)

READS: dict[str, Callable[[], Any]] = {
    "item": ONE.item,
    "bool": lambda: bool(ONE > 0),
    "if": lambda: 1 if ONE else 2,
    "float": lambda: float(ONE),
    "int": lambda: int(ONE),
    "index": lambda: range(torch.tensor(2)),
    "in": lambda: 2.0 in X,
    "max of Python": lambda: max(X),
    "math": lambda: math.sqrt(ONE),
    "tolist": X.tolist,
    "numpy": X.numpy,
    "numpy's asarray": lambda: np.asarray(X),
    "numpy's function": lambda: np.linalg.norm(X),
    "dlpack": lambda: np.from_dlpack(X),
    "cpu": X.cpu,
    "format": lambda: f"{ONE:.2f}",
    "a number of an operation": lambda: torch.add(X, X, alpha=ONE),
    "a list of tensors": lambda: torch.tensor([ONE, ONE]),
    "equal": lambda: torch.equal(X, X),
    "allclose": lambda: torch.allclose(X, X),
    "a mask": lambda: X[X > 1],
    "writing through a mask": lambda: X.clone().__setitem__(X > 1, 0.0),
    "nonzero": lambda: torch.where(X > 1),
    "unique": X.unique,
}


@pytest.mark.parametrize("read", READS)
def test_the_context_sees_a_read(read: str) -> None:
    READS[read]()  # possible outside
    with pytest.raises(Conversion), Conversions():
        READS[read]()
    with Conversions(allowed=1) as seen:
        READS[read]()
    assert len(seen.names) == 1
    with pytest.raises(Conversion), Conversions(allowed=1):
        READS[read]()
        READS[read]()


def test_the_context_lets_arithmetic_pass() -> None:
    with Conversions():
        y = torch.add(X, X.roll(1), alpha=0.5).clamp(-1, 1).to(torch.float64)
        z = torch.where(X > 1, X, ONE) + torch.tensor([1.0, 2.0]) * y[0]
        assert z.chunk(2)[0].shape == (1,)
    assert torch.isfinite(z).all()


@solvers
def test_a_pure_step_reads_nothing(solver: Solver) -> None:
    scheduler = solver.make()
    plan = solver.plan(scheduler)
    x, state, generator = started(plan), solver.state(scheduler, plan), torch.Generator().manual_seed(0)
    for i in range(len(plan)):
        y = predicted(scheduler, plan, i, x)
        noise = scheduler.draw_noise(plan, i, x, generator, y.dtype)
        with Conversions():
            scheduler.scale_input(plan, i, x)
            x, state, _ = scheduler.advance(plan, i, y, x, state, noise)


@solvers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_whole_run_without_values(solver: Solver, dtype: torch.dtype) -> None:
    scheduler = solver.make()
    plan = solver.plan(scheduler, device="meta")
    x, state = torch.empty(SHAPE, device="meta", dtype=dtype), _without_values(solver.state(scheduler, plan), dtype)
    for i in range(len(plan)):
        scaled = scheduler.scale_input(plan, i, x).to(dtype)
        y = torch.cat([scaled, scaled], 1) if variance(scheduler) else scaled
        noise = scheduler.draw_noise(plan, i, torch.zeros(x.shape, dtype=dtype), torch.Generator(), dtype)
        x, state, original = scheduler.advance(plan, i, y, x, state, _without_values(noise, dtype))
        assert x.device.type == "meta"
        assert original is None or original.device.type == "meta"


def _without_values(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        made = [_without_values(one, dtype) for one in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value.to("meta", dtype) if isinstance(value, torch.Tensor) else value


def _familiar_steps(
    solver: Solver, times: Callable[[torch.Tensor], Any], allowed: int | None = None, planned: bool = True
) -> list[int]:
    """How often each step of a loop reads a value, where timesteps reach it as `times` makes them."""
    scheduler = solver.make()
    before, after = (inspect.signature(one).parameters for one in (scheduler.set_timesteps, scheduler.step))
    options = {key: value for key, value in solver.options.items() if key in after and (not planned or key in before)}
    given = {key: value for key, value in solver.options.items() if key in before and (planned or key not in after)}
    scheduler.set_timesteps(solver.steps or 7, **given)
    count, own = len(scheduler._run()), scheduler.timesteps
    if "generator" in after:
        options["generator"] = torch.Generator().manual_seed(0)
    x, counts = started(scheduler._run()), []
    for i, t in enumerate(times(own[:count])):
        y = network(scheduler.scale_model_input(x, own[i]), own[i], variance(scheduler))
        if "prev_timestep" in after:
            options["prev_timestep"] = own[i + 1] if i + 1 < count else None
        with Conversions(allowed) as seen:
            x = scheduler.step(y, t, x, **options)[0]
        counts.append(len(seen.names))
    assert len(counts) == count
    return counts


@solvers
def test_a_familiar_step_reads_nothing_at_its_own_timesteps(solver: Solver) -> None:
    assert not any(_familiar_steps(solver, list, allowed=0))
    assert not any(_familiar_steps(solver, lambda own: own.tolist(), allowed=0))
    assert not any(_familiar_steps(solver, lambda own: [t.expand(2) for t in own], allowed=0))


@solvers
def test_a_familiar_step_reads_at_most_the_timestep(solver: Solver) -> None:
    counts = _familiar_steps(solver, lambda own: [t.clone() for t in own], allowed=1)
    assert set(counts) <= {0, 1}
    assert any(counts)  # a copy says which timestep it is by its value alone


@solvers
def test_options_that_only_the_steps_name_are_planned_once(solver: Solver) -> None:
    first, *rest = _familiar_steps(solver, list, planned=False)
    assert not any(rest)
    assert not first or set(solver.options) & set(solver.make().options)
