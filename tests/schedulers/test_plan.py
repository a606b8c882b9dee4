"""The pure surface: nothing is changed, nothing is read from a tensor, runs do not see each other."""

from __future__ import annotations

import copy
import dataclasses
import threading
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from safelight import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from safelight.errors import InputError, UnknownArgumentError

from ..helpers.sampling import SHAPE, familiar_run, network, pure_run, start

SOLVERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler(), {}),
    "ddpm learned": (DDPMScheduler(variance_type="learned_range", thresholding=True), {}),
    "ddim": (DDIMScheduler(), {}),
    "ddim eta": (DDIMScheduler(prediction_type="v_prediction"), {"eta": 0.5, "use_clipped_model_output": True}),
    "pndm": (PNDMScheduler(), {}),
    "pndm skip": (PNDMScheduler(skip_prk_steps=True, prediction_type="v_prediction"), {}),
    "euler": (EulerDiscreteScheduler(), {}),
    "euler churn": (EulerDiscreteScheduler(use_karras_sigmas=True, prediction_type="sample"), {"s_churn": 3.0}),
}
solvers = pytest.mark.parametrize("solver", SOLVERS)


def _kind(scheduler: Any) -> str:
    return scheduler.config.get("variance_type", "")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@solvers
def test_a_pure_step_reads_no_tensor(solver: str) -> None:
    scheduler, options = SOLVERS[solver]
    plan = scheduler.plan(6, device="meta", **options)  # tensors without values: reading one is an error
    x, state = torch.empty(SHAPE, device="meta"), scheduler.initial_state(plan)
    for i in range(len(plan)):
        scaled = scheduler.scale_input(plan, i, x)
        output = torch.cat([scaled, scaled], 1) if _kind(scheduler).startswith("learned") else scaled
        x, state, original = scheduler.advance(plan, i, output, x, state, torch.empty(SHAPE, device="meta"))
        assert x.shape == original.shape == SHAPE


class CountReads(TorchDispatchMode):
    """Counts how often a tensor becomes a Python number."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@solvers
def test_a_familiar_step_reads_at_most_the_timestep(solver: str) -> None:
    scheduler, options = copy.deepcopy(SOLVERS[solver][0]), SOLVERS[solver][1]
    scheduler.set_timesteps(6, **options)
    x, y = start(1.0), network(start(1.0), 3, _kind(scheduler))
    times = list(scheduler.timesteps)
    with CountReads() as own_views:
        for t in times:
            scheduler.scale_model_input(x, t)
            scheduler.step(y, t, x)
    assert own_views.reads == 0
    scheduler.set_timesteps(6, **options)
    copies = [t.clone() for t in times]
    with CountReads() as foreign:
        for t in copies:
            scheduler.step(y, t, x)
    assert foreign.reads == len(copies)


@solvers
def test_pure_use_leaves_the_object_alone(solver: str) -> None:
    scheduler, options = copy.deepcopy(SOLVERS[solver][0]), SOLVERS[solver][1]
    scheduler.set_timesteps(7)
    x, t = start(scheduler.init_noise_sigma), scheduler.timesteps[0]
    scheduler.step(network(scheduler.scale_model_input(x, t), t, _kind(scheduler)), t, x, generator=_generator())
    before = dict(scheduler.__dict__)
    plan = scheduler.plan(5, **options)
    pure_run(scheduler, plan, _generator(), learned=_kind(scheduler))
    scheduler.noised(plan, 2, x, x)
    assert before.keys() == scheduler.__dict__.keys()
    assert all(before[key] is scheduler.__dict__[key] for key in before)


@solvers
def test_interleaved_runs_on_one_object(solver: str) -> None:
    scheduler, options = SOLVERS[solver]
    plans = [scheduler.plan(steps, **options) for steps in (9, 6, 9)]
    alone = [pure_run(scheduler, plan, _generator(), learned=_kind(scheduler)).samples for plan in plans]
    runs = [[start(plan.init_noise_sigma), scheduler.initial_state(plan), _generator()] for plan in plans]
    for i in range(max(map(len, plans))):
        for plan, run in zip(plans, runs, strict=True):
            if i < len(plan):
                x, state, generator = run
                y = network(scheduler.scale_input(plan, i, x), plan.timesteps[i], _kind(scheduler))
                noise = torch.randn(SHAPE, generator=generator) if plan.needs_noise[i] else None
                run[0], run[1], _ = scheduler.advance(plan, i, y, x, state, noise)
    for samples, (x, _, _) in zip(alone, runs, strict=True):
        assert torch.equal(samples[-1], x)


@solvers
def test_threads_share_one_object(solver: str) -> None:
    scheduler, options = SOLVERS[solver]
    results: dict[int, torch.Tensor] = {}

    def work(k: int) -> None:
        plan = scheduler.plan(5 + k % 3, **options)
        results[k] = pure_run(scheduler, plan, _generator(), learned=_kind(scheduler)).samples

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(3):
        assert torch.equal(results[k], results[k + 3])


@solvers
def test_a_copy_of_a_run_goes_on_alone(solver: str) -> None:
    scheduler = copy.deepcopy(SOLVERS[solver][0])
    scheduler.set_timesteps(8)
    x = start(scheduler.init_noise_sigma)
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t, _kind(scheduler)), t, x).prev_sample
    other, results = copy.deepcopy(scheduler), []
    for one in (scheduler, other):
        y, generator = x, _generator()
        for t in one.timesteps[3:]:
            output = network(one.scale_model_input(y, t), t, _kind(one))
            y = one.step(output, t, y, generator=generator).prev_sample
        results.append(y)
    assert torch.equal(*results)


def test_a_familiar_copy_at_a_pure_step() -> None:
    scheduler = EulerDiscreteScheduler()
    plan = scheduler.plan(5)
    view = scheduler.at(plan, 2)
    assert view.step_index == 2
    assert view.num_inference_steps == 5
    assert torch.equal(view.timesteps, plan.timesteps)
    assert scheduler.num_inference_steps is None
    x, y = start(1.0), network(start(1.0), 0)
    pure = scheduler.advance(plan, 2, y, x)
    assert torch.equal(view.step(y, view.timesteps[2], x).prev_sample, pure.sample)


@pytest.mark.parametrize("solver", ["ddpm", "ddim eta", "euler churn"])
def test_start_at_is_the_rest_of_the_plan(solver: str) -> None:
    scheduler, options = SOLVERS[solver]
    whole = scheduler.plan(8, **options)
    part = whole.start_at(3).start_at(1)
    assert len(part) == len(whole) - 4
    assert part.times == whole.times[4:]
    x, y, z = start(1.0), network(start(1.0), 9), start(1.0, 3)
    for i in range(len(part)):
        assert torch.equal(
            scheduler.advance(part, i, y, x, None, z).sample, scheduler.advance(whole, i + 4, y, x, None, z).sample
        )
    assert torch.equal(scheduler.noised(part, 0, x, z), scheduler.noised(whole, 4, x, z))
    with pytest.raises(InputError, match="step 8"):
        whole.start_at(8)


@solvers
def test_noised_is_what_add_noise_gives_at_that_step(solver: str) -> None:
    scheduler = copy.deepcopy(SOLVERS[solver][0])
    scheduler.set_timesteps(6)
    x, z, plan = start(1.0), start(1.0, 3), scheduler.plan(6)
    for i in range(len(plan)):
        wanted = scheduler.add_noise(x, z, scheduler.timesteps[i].repeat(2))
        assert torch.allclose(scheduler.noised(plan, i, x, z), wanted, rtol=1e-5)


def test_a_plan_is_frozen_and_complete() -> None:
    plan = DDIMScheduler(steps_offset=1).plan(4, eta=0.5)
    assert (len(plan), plan.num_inference_steps, plan.order, plan.init_noise_sigma) == (4, 4, 1, 1.0)
    assert plan.times == (751, 501, 251, 1)
    assert plan.timesteps.tolist() == list(plan.times)
    assert plan.needs_noise == (True,) * 4
    assert plan.options == {"eta": 0.5, "use_clipped_model_output": False}
    assert len(PNDMScheduler().plan(5)) == 14
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.times = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.options["eta"] = 0.0  # type: ignore[index]
    assert copy.deepcopy(plan) is plan


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "pndm", "euler"])
def test_familiar_and_pure_give_the_same_bits(solver: str) -> None:
    scheduler = copy.deepcopy(SOLVERS[solver][0])
    scheduler.set_timesteps(7)
    familiar = familiar_run(scheduler, {"generator": _generator()})
    assert torch.equal(familiar.samples, pure_run(scheduler, scheduler.plan(7), _generator()).samples)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": -3}, "num_inference_steps is -3"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": "ten"}, "num_inference_steps is 'ten'"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"num_inference_steps": 1001}, "num_train_timesteps=1000"),
        ({"num_inference_steps": 5, "timesteps": [3, 2]}, "one of them"),
        ({"timesteps": [10, 500]}, "smaller than the one before"),
        ({"timesteps": [1000, 500]}, r"\[0, 1000\)"),
        ({"timesteps": [10, 2.5]}, "whole numbers"),
        ({"timesteps": [10, -2]}, r"\[0, 1000\)"),
        ({"num_inference_steps": 5, "eta": -0.1}, "eta is -0.1"),
        ({"num_inference_steps": 5, "eta": 1.5}, "eta is 1.5"),
        ({"num_inference_steps": 5, "eta": float("nan")}, "eta is nan"),
        ({"num_inference_steps": 5, "eta": "a"}, "eta is 'a'"),
        ({"num_inference_steps": 5, "use_clipped_model_output": 1}, "True or False"),
    ],
)
def test_plans_that_cannot_be(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        DDIMScheduler().plan(**arguments)


def test_unknown_options_name_the_nearest() -> None:
    with pytest.raises(UnknownArgumentError, match="did you mean 'eta'"):
        DDIMScheduler().plan(5, etta=0.1)
    with pytest.raises(UnknownArgumentError, match=r"PNDMScheduler\.plan has no argument 'timesteps'"):
        PNDMScheduler().plan(timesteps=[4, 2])
    with pytest.raises(UnknownArgumentError, match="sigmas"):
        DDIMScheduler().plan(sigmas=[4, 2])


def test_steps_that_cannot_be() -> None:
    scheduler = DDIMScheduler()
    plan, x = scheduler.plan(4, eta=0.5), start(1.0)
    for i in (4, -1):
        with pytest.raises(InputError, match=f"step {i} is outside"):
            scheduler.advance(plan, i, x, x, None, x)
    with pytest.raises(InputError, match="adds noise"):
        scheduler.advance(plan, 0, x, x)
    with pytest.raises(InputError, match=r"\(2, 1, 6, 5\)"):
        scheduler.advance(plan, 0, x[:, :1], x, None, x)
    with pytest.raises(InputError, match="model_output is of type tuple"):
        scheduler.advance(plan, 0, (x,), x, None, x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sample is of type NoneType"):
        scheduler.advance(plan, 0, x, None, None, x)  # type: ignore[arg-type]
    learned = DDPMScheduler(variance_type="learned")
    with pytest.raises(InputError, match=r"DDPMScheduler needs \(2, 6, 6, 5\)"):
        learned.advance(learned.plan(4), 0, x, x, None, x)
