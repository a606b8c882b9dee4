"""Checkpoints of a run: one folder per step, safetensors and JSON only, appearing whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..configuration import read_json, to_json, write_atomically, write_json
from ..errors import RepositoryError, WeightsError

Tensors = dict[str, torch.Tensor]

_NAME = re.compile(r"step-(\d{8})")


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """A torch optimiser's `state_dict` as (tensors by "parameter.name", the rest as JSON)."""
    tensors: Tensors = {}
    scalars: dict[str, Any] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, torch.Tensor) else scalars)[f"{parameter}.{name}"] = value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def unflatten_optimizer(tensors: Tensors, rest: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["scalars"]}.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    # JSON has no tuples; optimisers compare nothing else than the values in them.
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in rest["param_groups"]]
    return {"state": state, "param_groups": groups}


def save(folder: str | os.PathLike, step: int, parts: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
    """Write `folder/step-NNNNNNNN` with one safetensors file per part and `state.json`; returns its path.

    It is written under another name and renamed when complete, so a crash never leaves half a checkpoint.
    """
    final = Path(folder) / f"step-{step:08d}"
    building = final.with_name(f".{final.name}.{os.getpid()}.part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        for name, tensors in parts.items():
            plain = {key: value.detach().contiguous() for key, value in tensors.items()}
            write_atomically(building / f"{name}.safetensors", partial(save_file, plain))
        write_json(building / "state.json", {**to_json(state), "step": step, "parts": sorted(parts)})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(building, final)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return final


def load(checkpoint: str | os.PathLike) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """(parts, state) of a checkpoint; `RepositoryError` where it is missing, `WeightsError` where damaged."""
    state = read_json(Path(checkpoint) / "state.json")
    parts = {}
    for name in state["parts"]:
        path = Path(checkpoint) / f"{name}.safetensors"
        try:
            parts[name] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{str(path)!r} is missing or damaged ({error}); resume from an older checkpoint"
            ) from error
    return parts, state


def check_fits(
    checkpoint: str | os.PathLike, name: str, parts: Mapping[str, Tensors], expected: Mapping[str, Any]
) -> None:
    """Raise `WeightsError` unless part `name` has exactly the tensors of `expected`, in their shapes."""
    have = {key: tuple(value.shape) for key, value in parts.get(name, {}).items()}
    want = {key: tuple(value.shape) for key, value in expected.items()}
    wrong = sorted(key for key in {*have, *want} if have.get(key) != want.get(key))
    if wrong:
        key = wrong[0]
        raise WeightsError(
            f"{os.fspath(checkpoint)!r} does not fit the model: {len(wrong)} entries of {name!r} differ, the first is "
            f"{key!r} (checkpoint: {have.get(key, 'absent')}, model: {want.get(key, 'absent')})"
        )


def found(folder: str | os.PathLike) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    home = Path(folder)
    return sorted(place for place in home.iterdir() if _NAME.fullmatch(place.name)) if home.is_dir() else []


def newest(folder: str | os.PathLike) -> Path:
    """The latest checkpoint in `folder`; raises `RepositoryError` where there is none."""
    places = found(folder)
    if not places:
        raise RepositoryError(f"there is no checkpoint (step-NNNNNNNN) in {os.fspath(folder)!r} to resume from")
    return places[-1]


def prune(folder: str | os.PathLike, keep: int) -> None:
    """Delete all but the latest `keep` checkpoints, and what a crash left half-written."""
    for place in found(folder)[: -keep or None]:
        shutil.rmtree(place)
    for place in Path(folder).glob(".step-*.part"):
        shutil.rmtree(place, ignore_errors=True)
