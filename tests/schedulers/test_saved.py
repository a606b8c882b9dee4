"""Runs as tensors and JSON: exact, whole, and refused clearly where they cannot be."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import safelight
from safelight import register_to_config
from safelight.errors import InputError, RepositoryError, UnsafeFileError
from safelight.saved import FORMAT, Packer, Unpacker, pack, unpack

from ..helpers.sampling import SHAPE
from ..helpers.solvers import run_from, started, taken


class Pair(NamedTuple):
    first: Any
    second: Any = None


def through_files(tensors: dict[str, torch.Tensor], description: Any) -> tuple[dict[str, torch.Tensor], Any]:
    return load(save(tensors)), json.loads(json.dumps(description, allow_nan=False))


def round_trip(value: Any, named: type | None = None) -> Any:
    packer = Packer()
    described = packer.describe("value", value)
    tensors, description = through_files(packer.tensors, described)
    return Unpacker(tensors).rebuild(description, named)


PLAIN = [
    None,
    True,
    3,
    2**63 - 1,
    0.1,
    5e-324,
    -0.0,
    float("inf"),
    "ε\n",
    [1, [2.5, None], ()],
    (1, (2, [3]), ()),
    {"a": {"tensor": 1, "named": [2]}, "": (1,)},
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values(value: Any) -> None:
    found = round_trip(value)
    assert found == value
    assert repr(found) == repr(value)


def test_not_a_number() -> None:
    assert np.isnan(round_trip([float("nan")])[0])


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4, 5)])
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    found = round_trip({"one": [tensor]})["one"][0]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_the_order_in_memory_is_kept() -> None:
    tensor = torch.randn(2, 3, 4, 5)
    for one in (tensor.to(memory_format=torch.channels_last), tensor.transpose(0, 3), tensor[:, 1:, ::2]):
        found = round_trip(one)
        assert torch.equal(found, one)
        order = [sorted(range(4), key=x.stride) for x in (found, one)]
        assert order[0] == order[1]
    wide = torch.ones(1, 3).expand(4, 3)
    assert torch.equal(round_trip(wide), wide)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.float64])
def test_arrays(dtype: type) -> None:
    array = np.linspace(0, 40, 9).astype(dtype)
    for one in (array, array[::-1], array[2], array.reshape(3, 3).T):
        found = round_trip(one)
        assert type(found) is type(one)
        assert found.dtype == dtype
        assert np.array_equal(found, one)
        assert isinstance(one, np.generic) or found.flags.writeable


def test_named_tuples() -> None:
    value = Pair(torch.ones(2), (Pair(1), [Pair(None, 2.0)]))
    found = round_trip(value, Pair)
    assert type(found) is type(found.second[0]) is Pair
    assert found.second == value.second
    with pytest.raises(ValueError, match="Pair is not expected"):
        round_trip(value)


def test_what_was_one_object_is_one_again() -> None:
    tensor, generator = torch.ones(3), torch.Generator().manual_seed(1)
    packer = Packer()
    described = packer.describe("value", [tensor, {"again": tensor}, generator, [generator]])
    assert len(packer.tensors) == 2
    found = Unpacker(*[packer.tensors]).rebuild(described)
    assert found[0] is found[1]["again"]
    assert found[2] is found[3][0]


def test_generators_go_on_where_they_were() -> None:
    generator = torch.Generator().manual_seed(3)
    torch.randn(7, generator=generator)  # normals come in pairs; the second of the last one is part of the state
    found = round_trip(generator)
    assert found.initial_seed() == 3
    assert torch.equal(torch.randn(20, generator=found), torch.randn(20, generator=generator))


def test_equal_names_do_not_meet() -> None:
    value = {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}
    found = round_trip(value)
    assert found == value


REFUSED = {
    "an object": (object(), "object"),
    "a function": (len, "builtin_function_or_method"),
    "a set": ({1}, "set"),
    "keys that are no strings": ({1: 2}, "dict"),
    "text in an array": (np.array(["a"]), "ndarray"),
    "complex": (torch.ones(1, dtype=torch.complex64), "complex64"),
    "sparse": (torch.ones(2, 2).to_sparse(), "sparse"),
    "no values": (torch.ones(1, device="meta"), "meta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_held_is_named(case: str) -> None:
    value, kind = REFUSED[case]
    with pytest.raises(InputError, match=rf"^options\.deep\.1 is .*{kind}.* which a saved run cannot hold"):
        Packer().describe("options", {"deep": [0, value]})


def _begun(steps: int = 6, begin: int = 0, **config: Any) -> tuple[Any, Any]:
    scheduler = safelight.EulerDiscreteScheduler(**config)
    plan = scheduler.plan(steps, s_churn=2.0)
    return scheduler, plan.start_at(begin) if begin else plan


def test_a_plan_comes_back_exactly() -> None:
    scheduler, plan = _begun(use_karras_sigmas=True, trained_betas=np.linspace(1e-4, 0.02, 50), num_train_timesteps=50)
    for one in (plan, plan.start_at(2), plan.start_at(1).start_at(2)):
        made, again, state = unpack(*through_files(*pack(scheduler, one)))
        assert state is None
        assert type(made) is type(scheduler)
        assert torch.equal(made.alphas_cumprod, scheduler.alphas_cumprod)
        assert (again.begin, again.order, again.sigmas) == (one.begin, one.order, one.sigmas)
        assert (again.rows, again.times, again.levels) == (one.rows, one.times, one.levels)
        assert (again.needs_noise, again.options, again.init_noise_sigma) == (
            one.needs_noise, one.options, one.init_noise_sigma,
        )  # fmt: skip
        assert again.num_inference_steps == one.num_inference_steps
        for tensors in ((again.timesteps, one.timesteps), map(torch.from_numpy, (again.grid.sigmas, one.grid.sigmas))):
            first, second = tensors
            assert first.dtype == second.dtype
            assert torch.equal(first, second)
        assert again.grid.times.dtype == one.grid.times.dtype
        assert (again.grid.exact, again.grid.corrected) == (one.grid.exact, one.grid.corrected)


TIMETABLES = [
    ("DDIMScheduler", {"timesteps": [900, 411, 37]}),
    ("EulerDiscreteScheduler", {"sigmas": [9.0, 3.0, 0.2, 0.0]}),
    ("DDPMScheduler", {"num_inference_steps": 7, "corrected": True}),
    ("DDPMScheduler", {}),
]


@pytest.mark.parametrize(("name", "timetable"), TIMETABLES, ids=str)
def test_timetables_of_every_kind(name: str, timetable: dict[str, Any]) -> None:
    scheduler = getattr(safelight, name)(num_train_timesteps=1000)
    plan = scheduler.plan(**timetable)
    made, again, _ = unpack(*through_files(*pack(scheduler, plan)))
    assert again.timesteps.dtype == plan.timesteps.dtype
    ours = [run_from(*each, None, torch.Generator().manual_seed(2))[-1] for each in ((scheduler, plan), (made, again))]
    assert torch.equal(*ours)


def test_the_state_may_be_anything_that_steps_give_back() -> None:
    scheduler = safelight.PNDMScheduler()
    plan = scheduler.plan(8)
    x, state = started(plan), scheduler.initial_state(plan)
    for i in range(5):
        x, state, _ = taken(scheduler, plan, i, x, state, None)
    tensors, description = pack(scheduler, plan, state)
    assert {"state.history.0", "state.start", "grid.times"} <= set(tensors)
    _, _, again = unpack(*through_files(tensors, description))
    assert type(again) is type(state)
    assert len(again.history) == len(state.history)
    assert again.taken == state.taken
    assert torch.equal(again.start, state.start)


def test_packing_is_a_copy() -> None:
    scheduler, plan = _begun()
    state = torch.zeros(SHAPE)
    tensors, description = pack(scheduler, plan, (state,))
    state += 1
    assert tensors["state.0"].abs().max() == 0
    _, _, again = unpack(tensors, description)
    again[0].add_(1)
    assert tensors["state.0"].abs().max() == 0


def test_the_device_may_change() -> None:
    scheduler, plan = _begun()
    packed = through_files(*pack(scheduler, plan, (torch.zeros(2),)))
    _, again, state = unpack(*packed, device="meta")
    assert again.timesteps.device.type == state[0].device.type == "meta"
    packed[1]["plan"]["device"] = "cuda:77"
    with pytest.raises(InputError, match="cuda:77"):
        unpack(*packed)
    assert unpack(*packed, device="cpu")[1].rows == plan.rows


class Own(safelight.DDIMScheduler):
    """A script's own."""

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000):
        super().__init__(num_train_timesteps)


def test_a_class_of_a_scripts_own_is_refused() -> None:
    scheduler = Own()
    with pytest.raises(InputError, match="Own is not one of Safelight's schedulers"):
        pack(scheduler, scheduler.plan(4))
    with pytest.raises(InputError, match="function is not one of"):
        pack(lambda: None, None)  # type: ignore[arg-type]


def test_a_scheduler_that_was_changed_is_refused() -> None:
    scheduler: Any = safelight.DDIMScheduler()
    plan = scheduler.plan(6)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    assert pack(scheduler, plan)  # made before
    with pytest.raises(InputError, match="DDIMScheduler, or the plan, was changed"):
        pack(scheduler, scheduler.plan(6))
    scheduler, plan = _begun()
    scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(InputError, match="was changed"):
        pack(scheduler, plan)
    assert pack(scheduler, scheduler.plan(6))


def test_a_function_in_the_config_is_refused() -> None:
    scheduler = safelight.SASolverScheduler(tau_func=lambda t: 0.5)
    with pytest.raises(InputError, match=r"config\.tau_func is of type function"):
        pack(scheduler, scheduler.plan(4))


@pytest.mark.parametrize("name", ["Trainer", "os.system", "DiffusionPipeline", "SchedulerMixin", "Own", 3, None, []])
def test_unknown_classes_are_refused(name: Any) -> None:
    tensors, description = pack(*_begun())
    description["scheduler"]["class"] = name
    with pytest.raises(UnsafeFileError, match="none of Safelight's schedulers"):
        unpack(tensors, description)


def test_a_newer_format_is_refused() -> None:
    tensors, description = pack(*_begun())
    with pytest.raises(RepositoryError, match=rf"has format {FORMAT + 1}, newer than {FORMAT}"):
        unpack(tensors, {**description, "format": FORMAT + 1})


def _without(key: str) -> Any:
    return lambda tensors, description: description.pop(key)


DAMAGE = {
    "no format": _without("format"),
    "no plan": _without("plan"),
    "no scheduler": _without("scheduler"),
    "no state": _without("state"),
    "no tensor": lambda tensors, description: tensors.pop("grid.times"),
    "no grid": lambda tensors, description: description["plan"].update(grid=None),
    "a grid of another kind": lambda tensors, description: description["plan"].update(grid={"tuple": [1]}),
    "an unknown kind": lambda tensors, description: description.update(state={"code": "x"}),
    "an empty kind": lambda tensors, description: description.update(state={}),
    "an unknown option": lambda tensors, description: description["plan"]["options"]["dict"].update(x=1),
    "too long a way": lambda tensors, description: description["plan"].update(begin=99),
    "text for a number": lambda tensors, description: description["plan"].update(begin="2"),
    "a state that is not the solver's": lambda tensors, description: description.update(
        state={"named": "Plan", "dict": {}}
    ),
    "text for a format": lambda tensors, description: description.update(format="1"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case: str) -> None:
    tensors, description = through_files(*pack(*_begun()))
    DAMAGE[case](tensors, description)
    with pytest.raises((RepositoryError, InputError)) as error:
        unpack(tensors, description)
    assert isinstance(error.value, RepositoryError) or case == "too long a way"
    assert "damaged" in str(error.value) or case == "too long a way"
