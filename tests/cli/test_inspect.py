"""`safelight inspect`: what it says of local models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from safelight.cli import main as cli
from safelight.cli.inspect import size

from ..helpers.repositories import write_stable_diffusion


def inspected(capsys, *words: object) -> dict:
    assert cli.main(["inspect", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def parts(report: dict) -> dict[str, dict]:
    return {part["name"]: part for part in report["parts"]}


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_pipeline(capsys, stable_diffusion):
    report = inspected(capsys, stable_diffusion)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(stable_diffusion)
    assert (report["kind"], report["class_name"]) == ("pipeline", "StableDiffusionPipeline")
    networks = {name: one for name, one in loaded.components.items() if isinstance(one, torch.nn.Module)}
    found = parts(report)
    for name, network in networks.items():
        count = sum(p.numel() for p in network.parameters())
        buffers = sum(b.numel() for _, b in network.named_buffers() if b.is_floating_point() and b.ndim)
        assert found[name]["parameters"] - count in (0, buffers), name
        assert found[name]["class_name"] == type(network).__name__
        assert set(found[name]["dtypes"]) == {"float32"}
        assert found[name]["bytes"] == 4 * found[name]["parameters"]
    assert found["scheduler"]["class_name"] == "PNDMScheduler"
    assert found["image_encoder"]["class_name"] is None
    assert report["parameters"] == sum(part["parameters"] for part in report["parts"])
    assert report["cached"] == stored(stable_diffusion) - (stable_diffusion / "model_index.json").stat().st_size
    assert report["to_download"] == 0


def test_shards_variants_and_old_keys(capsys, tmp_path, stable_diffusion):
    plain = parts(inspected(capsys, stable_diffusion))
    write_stable_diffusion(tmp_path, dtype=torch.float16, variant="fp16", max_shard_size="200KB")
    found = parts(inspected(capsys, tmp_path, "--variant", "fp16"))
    for name in ("unet", "vae", "text_encoder", "safety_checker"):
        assert found[name]["parameters"] == plain[name]["parameters"]
        assert 2 * found[name]["bytes"] == plain[name]["bytes"]
        assert set(found[name]["dtypes"]) == {"float16"}
    shards = [file["name"] for file in found["unet"]["files"]]
    assert len([name for name in shards if name.endswith(".safetensors")]) == 3
    assert any(name.endswith(".json") and ".index." in name for name in shards)
    without = parts(inspected(capsys, tmp_path))["unet"]
    assert without["parameters"] == 0
    assert "no weights" in without["note"]


def test_tables_of_positions_are_no_parameters(capsys, tmp_path):
    save_file(
        {"a.weight": torch.zeros(2, 3), "a.position_ids": torch.arange(7), "b": torch.zeros(())},
        tmp_path / "x.safetensors",
    )
    report = inspected(capsys, tmp_path / "x.safetensors")
    assert (report["kind"], report["parameters"], report["bytes"]) == ("file", 7, 84)
    assert parts(report)["a"]["dtypes"] == {"float32": 6, "int64": 7}


def test_root_layout_and_single_models(capsys, ddpm_root, stable_diffusion):
    root = parts(inspected(capsys, ddpm_root))
    assert root["unet"]["parameters"] == diffusers.UNet2DModel.from_pretrained(ddpm_root).num_parameters()
    assert [file["name"] for file in root["scheduler"]["files"]] == ["scheduler_config.json"]
    unet = inspected(capsys, stable_diffusion / "unet")
    assert (unet["kind"], unet["class_name"]) == ("model", "UNet2DConditionModel")
    assert inspected(capsys, stable_diffusion / "text_encoder")["class_name"] == "CLIPTextModel"
    assert inspected(capsys, stable_diffusion / "scheduler")["class_name"] == "PNDMScheduler"


def test_table(capsys, stable_diffusion):
    assert cli.main(["inspect", str(stable_diffusion)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{stable_diffusion}: StableDiffusionPipeline\n")
    assert "UNet2DConditionModel" in shown
    assert f"{parts(inspected(capsys, stable_diffusion))['unet']['parameters']:,}" in shown
    assert "(left out)" in shown
    assert "to download: 0 B" in shown
    assert all(line == line.rstrip() and len(line) < 120 for line in shown.splitlines() if ":" not in line)


def test_pickles_and_missing_weights_are_said(capsys, tmp_path, ddpm_root):
    folder = tmp_path / "unet"
    shutil.copytree(ddpm_root, folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "only pickles" in parts(inspected(capsys, folder))["unet"]["note"]
    weights.with_suffix(".bin").unlink()
    assert parts(inspected(capsys, folder))["unet"]["note"] == "no weights"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nowhere", "no folder"),
        (lambda folder: folder, "holds no model"),
        (lambda folder: folder / "x.ckpt", "not a .safetensors file"),
        (lambda folder: folder / "cut.safetensors", "cut.safetensors"),
        (lambda folder: "no-such-model", "no bundled model"),
    ],
)
def test_errors(capsys, tmp_path, make, said):
    (tmp_path / "x.ckpt").write_bytes(b"\x80\x02}q\x00.")
    save_file({"a": torch.zeros(100)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-9])
    assert cli.main(["inspect", str(make(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("safelight: error: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (123_456, "123 kB"), (999_600, "1.0 MB"),
     (3_438_167_536, "3.4 GB"), (2.5e12, "2.5 TB")],
)  # fmt: skip
def test_sizes(count, text):
    assert size(count) == text
