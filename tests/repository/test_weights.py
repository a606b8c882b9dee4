"""Weights: mapped, converted, sharded, checked, written atomically."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight import ConfigError, UNet2DModel, UnsafeFileError, WeightsError
from safelight.repository.weights import load_into, mapped, parse_size, read_header, save_weights

SMALL = {
    "sample_size": 4,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UNet2DModel(**SMALL).eval()


def _same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_header_is_what_safetensors_wrote(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(0, 2)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert {key: (entry.dtype, entry.shape) for key, entry in header.items()} == {
        key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()
    }
    for name, tensor, _ in mapped(tmp_path / "x.safetensors"):
        assert torch.equal(tensor, tensors[name])


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    save_file({"a": torch.ones(2000)}, tmp_path / "x.safetensors")
    ((_, tensor, release),) = mapped(tmp_path / "x.safetensors")
    tensor.zero_()
    assert tensor.sum() == 0
    assert load_file(tmp_path / "x.safetensors")["a"].sum() == 2000
    release()


def _with_header(path, header: dict, size: int) -> None:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * size)


@pytest.mark.parametrize(
    ("header", "size", "word"),
    [
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, 8, "truncated"),
        ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}, 16, "'a'"),
        ({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}, 16, "F99"),
        ({"a": {"shape": [4], "data_offsets": [0, 16]}}, 16, "dtype"),
        (
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            12,
            "'b'",
        ),
        ({"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}, 16, "'a'"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}, 16, "'a'"),
        ({"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}}, 16, "'a'"),
        ({"a": [1, 2]}, 16, "'a'"),
        ([1, 2], 16, "malformed"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, size, word):
    _with_header(tmp_path / "x.safetensors", header, size)
    with pytest.raises(WeightsError, match=word) as caught:
        read_header(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("size", [10**9, "2KB", 1])
def test_shards_round_trip(model, tmp_path, size):
    model.save_pretrained(tmp_path, max_shard_size=size)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (size != 10**9)
    assert _same(UNet2DModel.from_pretrained(tmp_path), model)


def test_saving_again_leaves_no_stale_shards(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    model.save_pretrained(tmp_path, variant="fp16")
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    }


def test_a_crash_while_saving_leaves_the_old_file(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes()

    def crash(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_a_crash_between_shards_leaves_the_old_ones(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    newer = UNet2DModel(**SMALL)
    written = []

    def crash(tensors, path, metadata):
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("safetensors.torch.save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        newer.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(written) == 2
    assert _same(UNet2DModel.from_pretrained(tmp_path), model)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/passwd", 7])
def test_an_index_cannot_point_outside_its_folder(model, tmp_path, place):
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["conv_in.bias"] = place
    index.write_text(json.dumps(content))
    with pytest.raises((UnsafeFileError, WeightsError), match=r"weight_map|not beside it"):
        UNet2DModel.from_pretrained(tmp_path)


def test_a_missing_shard_is_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        UNet2DModel.from_pretrained(tmp_path)


def test_every_misfit_is_in_one_error(model, tmp_path):
    state = model.state_dict()
    state.pop("conv_in.bias")
    state["surprise"] = torch.zeros(1)
    state["conv_out.bias"] = torch.zeros(7)
    model.save_config(tmp_path)
    save_weights(state, tmp_path, "diffusion_pytorch_model")
    with pytest.raises(WeightsError) as caught:
        UNet2DModel.from_pretrained(tmp_path)
    for word in ("1 missing: conv_in.bias", "1 unexpected: surprise", "conv_out.bias (7,)", "(3,)"):
        assert word in str(caught.value)
    torch.manual_seed(0)
    loaded = UNet2DModel.from_pretrained(tmp_path, strict=False, ignore_mismatched_sizes=True)
    assert loaded.conv_in.bias.device.type == "cpu"
    assert torch.equal(loaded.conv_in.weight, model.conv_in.weight)
    assert loaded(torch.zeros(1, 3, 4, 4), 1).sample.isfinite().all()


def test_dtype_and_what_stays_float32(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = UNet2DModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    fresh = UNet2DModel(**SMALL)
    load_into(fresh, [tmp_path / "diffusion_pytorch_model.safetensors"], dtype=torch.bfloat16, keep_in_fp32=["conv_in"])
    assert fresh.conv_in.weight.dtype == torch.float32
    assert fresh.conv_out.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="bfloat16"):
        UNet2DModel.from_pretrained(tmp_path, dtype="bfloat61")


@pytest.mark.parametrize(("text", "size"), [("10GB", 10**10), ("1.5 MB", 1_500_000), ("2KiB", 2048), (7, 7)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["ten", "-3", 0, "5XB", True])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match="max_shard_size"):
        parse_size(text)


MEASURE = """
import resource, sys, torch
from pathlib import Path
from safelight.repository.weights import load_into
model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048, bias=False, device="meta") for _ in range(24)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_into(model, [Path(sys.argv[1])], dtype=getattr(torch, sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1.15), ("float16", 0.05)])
def test_memory_holds_the_result_and_not_the_file(tmp_path, dtype, most):
    state = {f"{k}.weight": torch.zeros(2048, 2048, dtype=torch.float16) for k in range(24)}
    save_file(state, tmp_path / "x.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "x.safetensors"), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = 24 * 2048 * 2048 * 4
    assert int(done.stdout) * 1024 <= most * wanted
