"""Weights in safetensors files: mapped, handed over one by one in their final dtype and device, written atomically."""

from __future__ import annotations

import functools
import json
import logging
import math
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..configuration import read_json, write_json, write_together
from ..errors import ConfigError, RepositoryError, UnsafeFileError, WeightsError
from .hub import Source

logger = logging.getLogger(__name__)

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "C64": torch.complex64,
    "BOOL": torch.bool,
}


class Entry(NamedTuple):
    """One tensor of a file: its dtype and shape, and its bytes [start, end) counted from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: str | os.PathLike) -> dict[str, Entry]:
    """The tensors of a safetensors file, from its header alone.

    Raises `WeightsError`, naming the file, where it is truncated, malformed, or its header contradicts itself.
    """
    name, size = os.fspath(path), os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 < length <= size - 8:
            raise WeightsError(f"{name!r} is not a safetensors file, or is truncated: it has {size} bytes")
        raw = file.read(length)
    entries: dict[str, Entry] = {}
    key = "__metadata__"
    try:
        header = json.loads(raw)
        header.pop(key, None)
        for key, value in header.items():
            entries[key] = entry_of(value, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"the header of {name!r} is malformed at {key!r}: {error!r}") from error
    end = 8 + length
    for key, entry in _in_file_order(entries):
        wanted = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start < end or entry.end - entry.start != wanted or min(entry.shape, default=0) < 0:
            raise WeightsError(f"the header of {name!r} is malformed at {key!r}: {wanted} bytes do not fit there")
        end = entry.end
    if end > size:
        cut = next(key for key, entry in _in_file_order(entries) if entry.end > size)
        raise WeightsError(
            f"{name!r} is truncated at {cut!r}: {size} of {end} bytes are there; download or copy it again"
        )
    return entries


def _in_file_order(entries: Mapping[str, Entry]) -> list[tuple[str, Entry]]:
    # An empty tensor may share its place with the next one.
    return sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))


def entry_of(value: Mapping[str, Any], base: int) -> Entry:
    """One tensor as a header describes it, its offsets counted from `base`."""
    start, end = value["data_offsets"]
    return Entry(_DTYPES[value["dtype"]], tuple(int(n) for n in value["shape"]), base + int(start), base + int(end))


def mapped(path: str | os.PathLike) -> Iterator[tuple[str, torch.Tensor, Callable[[], None]]]:
    """Every tensor of a safetensors file in file order, as a view of the mapped file: (name, tensor, release).

    Nothing is read before it is used, and writing to a tensor copies the page (the file never changes). `release` drops
    the tensor's pages from memory again, for callers that have copied it.
    """
    entries = read_header(path)
    if not entries:
        return
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    page = mmap.PAGESIZE
    for name, (dtype, shape, start, end) in _in_file_order(entries):

        def release(first: int = start // page * page, last: int = end) -> None:
            if hasattr(mmap, "MADV_DONTNEED"):
                memory.madvise(mmap.MADV_DONTNEED, first, last - first)

        if start == end:
            yield name, torch.empty(shape, dtype=dtype), release
        elif start % dtype.itemsize:
            # Old files are not aligned; torch needs that.
            yield name, torch.frombuffer(bytearray(memory[start:end]), dtype=dtype).view(shape), release
        else:
            flat = torch.frombuffer(memory, dtype=dtype, count=(end - start) // dtype.itemsize, offset=start)
            yield name, flat.view(shape), release


def find_weights(
    source: Source, base: str, variant: str | None = None, use_safetensors: bool | None = None
) -> list[Path]:
    """The files that hold a model's weights, downloaded if need be: one, or the shards that an index names.

    Without the variant asked for the plain files are taken, with a warning. Pickles are taken only with
    `use_safetensors=False`; where there is nothing else, `UnsafeFileError` says so. Raises `RepositoryError` otherwise.
    """
    pickles = use_safetensors is False
    bases = {"model": "pytorch_model"} if pickles else {}
    stem, suffix = bases.get(base, base), "bin" if pickles else "safetensors"
    for tag in dict.fromkeys((variant, None)):
        dotted = f".{tag}" if tag else ""
        single = source.find(f"{stem}{dotted}.{suffix}")
        index = None if single else source.find(f"{stem}.{suffix}.index{dotted}.json")
        if single or index:
            if tag != variant:
                logger.warning("%s has no variant %r of its weights; the plain files are used", source, variant)
            return [single] if single else _shards(source, index)  # type: ignore[arg-type]
    twin = f"{'pytorch_model' if base == 'model' else base}.bin"
    tagged = twin.replace(".bin", f".{variant}.bin")
    for name in (twin, tagged, f"{twin}.index.json"):
        if not pickles and source.on_hub(name):
            raise UnsafeFileError(
                f"{str(source)!r} has its weights only as a pickle ({name}), which can run code when it is read; "
                "if you trust it, pass use_safetensors=False (it is then read as plain tensors only)"
            )
    raise RepositoryError(f"there are no weights: {source.absence(f'{stem}.{suffix}')}")


def _shards(source: Source, index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{os.fspath(index)!r} has no weight_map from keys to files")
    for key, name in places.items():
        if Path(name).name != name:
            raise UnsafeFileError(f"{os.fspath(index)!r} has {key!r} in {name!r}, which is not beside it")
    return [source.file(name) for name in sorted(set(places.values()))]


def tensors(files: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor, Callable[[], None]]]:
    """Every tensor of the files, safetensors or (read as plain tensors only) pickles, as `mapped` gives them."""
    for path in files:
        if path.suffix == ".safetensors":
            yield from mapped(path)
            continue
        try:
            # Only zip files can be mapped; torch wrote others before 2020.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            state = dict(state.get("state_dict", state))
        except Exception as error:
            raise WeightsError(f"{os.fspath(path)!r} cannot be read as plain tensors: {error}") from error
        for name, tensor in state.items():
            if not isinstance(tensor, torch.Tensor):
                raise WeightsError(f"{os.fspath(path)!r} holds a {type(tensor).__name__} at {name!r}, not a tensor")
            yield name, tensor, lambda: None


class Misfit:
    """Collects what does not fit between a file and a model, for one error that lists it all."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.misshapen: list[str] = []

    def report(self, where: str, strict: bool, ignore_shapes: bool) -> None:
        """Raise a `WeightsError` for what is not allowed, and warn of what is."""
        allowed = {"missing": not strict, "unexpected": not strict, "misshapen": ignore_shapes}
        found = {kind: getattr(self, kind) for kind in allowed if getattr(self, kind)}
        if not found:
            return
        text = "; ".join(f"{len(names)} {kind}: {_shortened(names)}" for kind, names in found.items())
        if all(allowed[kind] for kind in found):
            logger.warning("the weights in %s do not match the model (%s)", where, text)
            return
        advice = "check that config and weights belong together"
        raise WeightsError(f"the weights in {where} do not match the model; {text}. {advice}, or pass strict=False")


def _shortened(names: list[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + rest


def load_into(
    model: torch.nn.Module,
    files: Iterable[Path],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    old_keys: Iterable[tuple[str, str]] = (),
    ignored_keys: Iterable[str] = (),
    keep_in_fp32: Iterable[str] = (),
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    where: str = "the file",
) -> list[str]:
    """Put the files' tensors in place of the model's own (which may be on `meta`); returns the names it did not get.

    Floating-point tensors become `dtype` (None: as stored) on `device`; those whose module is in `keep_in_fp32` stay
    float32. Where nothing has to change, the tensor keeps pointing into the mapped file. Raises `WeightsError` listing
    missing, unexpected and misshapen keys.
    """
    slots = _slots(model)
    rename = [(re.compile(pattern), new) for pattern, new in old_keys]
    ignored = [re.compile(pattern) for pattern in ignored_keys]
    misfit = Misfit()
    seen: set[int] = set()
    filled: set[int] = set()
    for stored, tensor, release in tensors(files):
        name = stored
        if name not in slots:
            for pattern, new in rename:
                name = pattern.sub(new, name)
        if name not in slots:
            if not any(pattern.search(stored) for pattern in ignored):
                misfit.unexpected.append(stored)
            continue
        slot = slots[name]
        seen.add(id(slot))
        if not _fits(name, tensor, slot.tensor):
            misfit.misshapen.append(f"{name} {_described(tensor)}, the model has {_described(slot.tensor)}")
            continue
        wanted = tensor.dtype
        if dtype is not None and tensor.is_floating_point():
            wanted = torch.float32 if any(part in name.split(".") for part in keep_in_fp32) else dtype
        final = tensor.to(device or "cpu", wanted).reshape(slot.tensor.shape)
        if final.data_ptr() != tensor.data_ptr() or final.device != tensor.device:
            release()
        slot.put(final)
        filled.add(id(slot))
    misfit.missing = [name for name in model.state_dict() if id(slots[name]) not in seen]
    misfit.report(where, strict, ignore_mismatched_sizes)
    return [name for name, slot in slots.items() if id(slot) not in filled]


class Slot:
    """A parameter or buffer of a model and every place that it is in (tied weights have several)."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.places: list[tuple[torch.nn.Module, str]] = []

    def put(self, value: torch.Tensor) -> None:
        """Let `value` take the tensor's place; what was tied stays tied."""
        if isinstance(self.tensor, torch.nn.Parameter):
            value = torch.nn.Parameter(value, requires_grad=self.tensor.requires_grad)
        for module, leaf in self.places:
            own: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            own[leaf] = value


def _slots(model: torch.nn.Module) -> dict[str, Slot]:
    """The slot of each name of a parameter or buffer."""
    by_tensor: dict[int, Slot] = {}
    slots = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                slot = by_tensor.setdefault(id(tensor), Slot(tensor))
                slot.places.append((module, leaf))
                slots[f"{prefix}.{leaf}" if prefix else leaf] = slot
    return slots


def fill(model: torch.nn.Module, names: Iterable[str], other: torch.nn.Module, dtype: torch.dtype, device: Any) -> None:
    """Put `other`'s tensors of these names into `model`, floating-point ones as `dtype`."""
    slots, theirs = _slots(model), _slots(other)
    for slot, value in {slots[name]: theirs[name].tensor.detach() for name in names}.items():
        slot.put(value.to(device, dtype if value.is_floating_point() else value.dtype))


def _fits(name: str, tensor: torch.Tensor, current: torch.Tensor) -> bool:
    if tensor.is_floating_point() != current.is_floating_point():
        return False
    if "attentions" not in name:
        return tensor.shape == current.shape
    # Old attention blocks hold their projections as linear layers or as 1×1 convolutions.
    first, second = ([size for size in one.shape if size != 1] for one in (tensor, current))
    return first == second


def _described(tensor: torch.Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def parse_size(size: int | str) -> int:
    """A size in bytes from a number or "10GB", "500MB", "2GiB"; raises `ConfigError` for anything else."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B\s*", str(size).upper())
    if not match:
        raise ConfigError(f"max_shard_size is {size!r}; a number of bytes or a size such as '10GB' is needed")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2] or " "))


def save_weights(
    state: Mapping[str, torch.Tensor],
    folder: str | os.PathLike,
    base: str,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
) -> None:
    """Write `state` to `folder` as one safetensors file or as shards with their index; older ones of that name go last.

    Shared tensors are written once per name. All shards are written before any takes its place, and then the index.
    """
    target, limit = Path(folder), parse_size(max_shard_size)
    if target.is_file():
        raise RepositoryError(f"{os.fspath(folder)!r} is a file; save_pretrained needs a folder")
    shards: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    dotted = f".{variant}" if variant else ""
    names = [f"{base}{dotted}.safetensors"]
    if len(shards) > 1:
        names = [f"{base}{dotted}-{k + 1:05}-of-{len(shards):05}.safetensors" for k in range(len(shards))]
    writers = {target / name: functools.partial(_write_shard, shard) for name, shard in zip(names, shards, strict=True)}
    write_together(writers)
    index = target / f"{base}.safetensors.index{dotted}.json"
    if len(shards) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
    else:
        index.unlink(missing_ok=True)
    pattern = re.compile(re.escape(f"{base}{dotted}") + r"(-\d{5}-of-\d{5})?\.safetensors")
    for path in target.iterdir():
        if pattern.fullmatch(path.name) and path.name not in names:
            path.unlink()


def _write_shard(shard: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    own = {key: tensor.detach().to("cpu").contiguous() for key, tensor in shard.items()}
    pointers = [tensor.untyped_storage().data_ptr() for tensor in own.values()]
    if len(set(pointers)) < len(pointers):  # which safetensors does not write
        own = {key: tensor.clone() for key, tensor in own.items()}
    save_file(own, path, metadata={"format": "pt"})
