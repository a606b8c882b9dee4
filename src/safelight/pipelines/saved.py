"""A request half done, kept in one safetensors file: the run's tensors, and JSON in the metadata for the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch

from ..configuration import to_json, write_atomically
from ..errors import InputError, RepositoryError
from ..saved import Packer, Tensors, Unpacker, checked, describe_run, rebuild_run
from .components import uncompiled
from .denoise import Trajectory
from .guidance import Guidance

if TYPE_CHECKING:
    from .denoise import DenoisingPipeline

_KEY = "safelight.run"  # of the metadata

# Entries of configs that describe the file they were in.
_OF_FILES = ("architectures", "dtype", "torch_dtype", "transformers_version")

# What `describe_run` holds, and what a resumed run begins with anew.
_APART = ("scheduler", "plan", "state", "interrupt")


def save(pipeline: DenoisingPipeline, trajectory: Trajectory, path: str | os.PathLike) -> None:
    """Write `trajectory` to `path`; see `DenoisingPipeline.save_run`."""
    from safetensors.torch import save_file

    if os.path.isdir(path):
        raise RepositoryError(f"{os.fspath(path)!r} is a folder; a run is saved in one file")
    if type(trajectory.guidance) is not Guidance:
        raise InputError(f"guidance is a {type(trajectory.guidance).__name__}, which a saved run cannot hold")
    packer = Packer()
    description = describe_run(packer, trajectory.scheduler, trajectory.plan, trajectory.state)
    values = {
        each.name: getattr(trajectory, each.name)
        for each in fields(trajectory)
        if each.init and each.name not in _APART
    }
    values["generator"] = _source_of_noise(trajectory)
    values["guidance"] = asdict(trajectory.guidance)
    description["run"] = {name: packer.describe(name, value) for name, value in values.items()}
    description["pipeline"] = _identity(pipeline)
    metadata = {_KEY: json.dumps(description)}
    write_atomically(path, lambda temporary: save_file(packer.tensors, temporary, metadata=metadata))


def load(pipeline: DenoisingPipeline, path: str | os.PathLike) -> Trajectory:
    """The trajectory in the file `path`, on the pipeline's device; see `DenoisingPipeline.resume`."""
    tensors, description = _read(path)
    with checked(f"the run in {os.fspath(path)!r}", description):
        _check_same(description["pipeline"], _identity(pipeline))
        values = Unpacker(tensors, pipeline.device)
        scheduler, plan, state = rebuild_run(values, description)
        run = {name: values.rebuild(value) for name, value in description["run"].items()}
        run["guidance"] = Guidance(**run["guidance"])
        if not 0 <= run["index"] <= len(plan):
            raise ValueError(f"it stands at step {run['index']} of {len(plan)}")
        return Trajectory(scheduler=scheduler, plan=plan, state=state, **run)


def _source_of_noise(trajectory: Trajectory) -> Any:
    """The run's generator: where it has none, and still needs noise, torch's own as it stands now."""
    if trajectory.generator is not None or not any(trajectory.plan.needs_noise[trajectory.index :]):
        return trajectory.generator
    device = trajectory.sample.device
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    raise InputError(f"this run draws its noise from torch's own generator on {device}; pass seed= or generator=")


def _identity(pipeline: DenoisingPipeline) -> dict[str, Any]:
    """What must be the same for a run to go on: the classes, and the networks' configs and dtypes."""
    parts: dict[str, Any] = {"class": type(pipeline).__name__}
    for name, component in pipeline.components.items():
        if name == "scheduler":  # the run has its own
            continue
        inner = uncompiled(component)
        parts[name] = {"class": None if inner is None else type(inner).__name__}
        if isinstance(inner, torch.nn.Module):
            config = getattr(inner, "config", {})
            entries = dict(config) if isinstance(config, Mapping) else config.to_dict()
            public = {key: value for key, value in entries.items() if key[0] != "_" and key not in _OF_FILES}
            dtype = next((one.dtype for one in inner.parameters()), None)
            parts[name] |= {"dtype": str(dtype).removeprefix("torch."), "config": to_json(public)}
    return json.loads(json.dumps(parts, default=str))


def _check_same(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Raise `InputError` that names the first difference."""
    if saved["class"] != present["class"]:
        raise InputError(f"the run is of a {saved['class']}, but this is a {present['class']}; resume it in its own")
    for name in {**saved, **present}:
        before, now = saved.get(name, {}), present.get(name, {})
        if name == "class" or before == now:
            continue
        for what in ("class", "dtype"):
            if before.get(what) != now.get(what):
                raise InputError(
                    f"{name} has {what} {now.get(what)} here, but the run was saved with {before.get(what)}; load the "
                    "same pipeline"
                )
        olds, news = before["config"], now["config"]
        entry = next(key for key in {**olds, **news} if olds.get(key) != news.get(key))
        raise InputError(
            f"{name} has {entry}={news.get(entry)!r} here, but the run was saved with {olds.get(entry)!r}; load the "
            "same pipeline"
        )


def _read(path: str | os.PathLike) -> tuple[Tensors, Any]:
    """The tensors and the description in a file; raises `RepositoryError` where it is none of a run."""
    from safetensors import SafetensorError, safe_open

    from ..repository.weights import read_header

    name = os.fspath(path)
    try:
        read_header(name)
        with safe_open(name, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        description = None if text is None else json.loads(text)
    except FileNotFoundError:
        raise RepositoryError(f"there is no file {name!r} with a run") from None
    except IsADirectoryError:
        raise RepositoryError(f"{name!r} is a folder; a run is one file") from None
    except (SafetensorError, ValueError) as error:
        raise RepositoryError(f"{name!r} is damaged: {error}") from error
    if description is None:
        raise RepositoryError(f"{name!r} holds tensors, but no run; save one with `pipe.save_run(trajectory, path)`")
    return tensors, description
