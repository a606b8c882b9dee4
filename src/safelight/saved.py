"""Sampling runs as plain data: tensors by name, and JSON that says what they are. No pickle, so nothing in it can run.

`pack` and `unpack` are for loops over `advance`; pipelines save whole runs (`pipe.save_run`, `pipe.resume`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .errors import ConfigError, InputError, RepositoryError, SafelightError, UnsafeFileError
from .runtime.precision import resolve_device
from .schedulers.base import Grid, Plan, Scheduler

FORMAT = 1  # of the description; a reader refuses what is newer

Tensors = dict[str, torch.Tensor]
Description = dict[str, Any]

_HOLDABLE = "tensors, arrays, numbers, strings, None, and lists, tuples and dicts of these"


class Packer:
    """Turns values into JSON; `tensors` collects those in them, on the CPU, by the place where they were found."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self._known: dict[int, tuple[Any, Any]] = {}  # id -> (value, description): what stands twice is stored once

    def describe(self, name: str, value: Any) -> Any:
        """`value` as JSON; raises `InputError` that names the place for what has no such form."""
        kind = type(value)
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if kind is float:
            return {"number": str(value)}
        if kind in (list, tuple):
            items = [self.describe(f"{name}.{i}", item) for i, item in enumerate(value)]
            return items if kind is list else {"tuple": items}
        fields = value._asdict() if isinstance(value, tuple) and hasattr(value, "_asdict") else value
        if isinstance(fields, Mapping) and all(isinstance(key, str) for key in fields):
            found = {"dict": {key: self.describe(f"{name}.{key}", item) for key, item in fields.items()}}
            return found if fields is value else {"named": kind.__name__, **found}
        if id(value) not in self._known:
            self._known[id(value)] = value, self._stored(name, value)
        return self._known[id(value)][1]

    def _stored(self, name: str, value: Any) -> Description:
        if isinstance(value, torch.Tensor):
            return self._tensor(name, value)
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
            return {"array": self._tensor(name, torch.from_numpy(np.array(value, order="C")))["tensor"]}
        if isinstance(value, torch.Generator):
            state = self._tensor(name, value.get_state())["tensor"]
            return {"generator": state, "device": str(value.device)}
        raise InputError(f"{name} is of type {type(value).__name__}, which a saved run cannot hold: {_HOLDABLE} it can")

    def _tensor(self, name: str, value: torch.Tensor) -> Description:
        if value.layout != torch.strided or value.device.type == "meta" or value.is_complex() or value.is_quantized:
            kind = f"a tensor of {value.dtype}, {value.layout} on {value.device}"
            raise InputError(f"{name} is {kind}, which a saved run cannot hold; make it a real, dense one with values")
        while name in self.tensors:
            name += "_"
        found: Description = {"tensor": name}
        value = value.detach()
        if not value.is_contiguous():
            # In the order that it has in memory (channels last, …): networks round differently in another one.
            found["order"] = sorted(range(value.ndim), key=value.stride, reverse=True)
            value = value.permute(found["order"])
        if value.device.type != "cpu":
            found["device"] = str(value.device)
        self.tensors[name] = value.cpu().clone(memory_format=torch.contiguous_format)
        return found


class Unpacker:
    """The reverse of `Packer`: values from JSON, their tensors on `device`, or where they were."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], device: torch.device | str | None = None):
        self.device = None if device is None else torch.device(device)
        self._tensors = tensors
        self._known: dict[str, Any] = {}  # what was one object is one again

    def rebuild(self, description: Any, named: type | None = None) -> Any:
        """The value; `named` is the class of the named tuples in it."""
        if isinstance(description, list):
            return [self.rebuild(item, named) for item in description]
        if not isinstance(description, dict):
            return description
        (kind, value), *_ = description.items()
        made: Any
        if kind == "dict":
            made = {key: self.rebuild(item, named) for key, item in value.items()}
        elif kind == "tuple":
            made = tuple(self.rebuild(value, named))
        elif kind == "number":
            made = float(value)
        elif kind != "named":
            if value not in self._known:
                make = {"tensor": self._tensor, "array": self._array, "generator": self._generator}[kind]
                self._known[value] = make(self._tensors[value], description)
            made = self._known[value]
        elif named is None or named.__name__ != value:
            raise ValueError(f"{value} is not expected there")
        else:
            made = named(**self.rebuild({"dict": description["dict"]}, named))
        return made

    def _tensor(self, stored: torch.Tensor, description: Description) -> torch.Tensor:
        found = stored.to(self.device or present(description.get("device", "cpu")), copy=True)
        return found.permute(*np.argsort(description["order"]).tolist()) if "order" in description else found

    def _array(self, stored: torch.Tensor, description: Description) -> Any:
        return stored.numpy().copy()[()]  # a number where it has no dimensions

    def _generator(self, stored: torch.Tensor, description: Description) -> torch.Generator:
        return torch.Generator(present(description["device"])).set_state(stored.clone())


def present(device: str) -> torch.device:
    """The device that a part of a run was on; raises `InputError` where there is none such."""
    try:
        found = resolve_device(device)
    except ConfigError as error:
        raise InputError(f"the run, or its generator, was on {device!r}, which is not here") from error
    assert found is not None
    return found


def pack(scheduler: Scheduler, plan: Plan, state: Any = None) -> tuple[Tensors, Description]:
    """A scheduler, its `plan` and the `state` between two steps, as tensors by name and JSON values.

    Raises `InputError` for what cannot be made again from that: a scheduler whose class is not Safelight's, that was
    changed after its construction, or whose config holds a function.
    """
    packer = Packer()
    description = describe_run(packer, scheduler, plan, state)
    return packer.tensors, description


def unpack(
    tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any], device: torch.device | str | None = None
) -> tuple[Scheduler, Plan, Any]:
    """The (scheduler, plan, state) that `pack` was given, to the last bit, on `device` or where they were.

    Raises `RepositoryError` for a description that is damaged or of a newer format, `UnsafeFileError` for one that
    names an unknown class, and `InputError` where the run was on a device that is not here.
    """
    with checked("the description of this run", description):
        return rebuild_run(Unpacker(tensors, device), description)


def describe_run(packer: Packer, scheduler: Any, plan: Any, state: Any) -> Description:
    """The description that `pack` returns; the tensors go to `packer`."""
    name = type(scheduler).__name__
    if _known_class(name) is not type(scheduler):
        raise InputError(
            f"{name} is not one of Safelight's schedulers, so a saved run could not find it again; use one of those"
        )
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    described = {
        "format": FORMAT,
        "scheduler": {"class": name, "config": packer.describe("config", config)},
        "plan": {
            "grid": packer.describe("grid", plan.grid),
            "options": packer.describe("options", plan.options),
            "begin": plan.begin,
            "device": str(plan.timesteps.device),
        },
        "state": packer.describe("state", state),
    }
    _, again, _ = rebuild_run(Unpacker(packer.tensors, "cpu"), {**described, "state": None})
    # Compared as text, which shows every digit of a float, and NaN as equal to itself.
    if any(repr(getattr(again, part)) != repr(getattr(plan, part)) for part in ("rows", "times", "needs_noise")):
        raise InputError(f"this {name}, or the plan, was changed after it was made; a saved run has only its config")
    return described


def rebuild_run(values: Unpacker, description: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """What `unpack` returns; the caller does so within `checked`."""
    name, parts = description["scheduler"]["class"], description["plan"]
    kind = _known_class(name)
    if kind is None:
        raise UnsafeFileError(f"a saved run names {name!r}, which is none of Safelight's schedulers")
    scheduler: Any = kind.from_config(values.rebuild(description["scheduler"]["config"]))
    grid, options = values.rebuild(parts["grid"], Grid), values.rebuild(parts["options"])
    plan = scheduler._assemble(grid, options, values.device or present(parts["device"]))
    plan = plan.start_at(parts["begin"]) if parts["begin"] else plan
    return scheduler, plan, values.rebuild(description["state"], type(scheduler.initial_state(plan)))


@contextmanager
def checked(what: str, description: Any) -> Iterator[None]:
    """Raise `RepositoryError` about `what` unless its format is known, and for what goes wrong while it is read."""
    version = description.get("format") if isinstance(description, Mapping) else None
    if type(version) is not int:
        raise RepositoryError(f"{what} is damaged: it has no format number")
    if version > FORMAT:
        raise RepositoryError(
            f"{what} has format {version}, newer than {FORMAT}, which this version of Safelight reads; update it"
        )
    try:
        yield
    except SafelightError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise RepositoryError(f"{what} is damaged: {error!r}") from error


def _known_class(name: Any) -> type[Scheduler] | None:
    """The public scheduler of that name."""
    package = importlib.import_module(__name__.split(".")[0])
    found = getattr(package, name) if name in package.__all__ else None
    return found if isinstance(found, type) and issubclass(found, Scheduler) else None
