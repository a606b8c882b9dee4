"""AutoencoderKL against diffusers: same keys, same numbers, same tiles, same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as TheirDistribution
from safetensors.torch import load_file, save_file

from safelight.models.autoencoder_kl import AutoencoderKL, DiagonalGaussianDistribution

from ..helpers.compare import relative_difference
from ..helpers.repositories import randomise

FOUR = {
    "block_out_channels": (8, 16, 16, 24),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "layers_per_block": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "four stages": FOUR,
    "flux": {
        **FOUR,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1,
    },
    "no middle attention": {**FOUR, "mid_block_add_attention": False},
    "attention in stages": {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "norm_num_groups": 8,
        "act_fn": "gelu",
        "in_channels": 1,
        "out_channels": 4,
        "latents_mean": (0.0, 1.0, 2.0, 3.0),
        "latents_std": (1.0, 1.0, 2.0, 2.0),
    },
}


def _pair(folder: Path, **config: Any) -> tuple[AutoencoderKL, Any]:
    theirs = randomise(diffusers.AutoencoderKL(**config))
    theirs.save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder), theirs


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 40, 27), (2, 17, 33)])
@torch.no_grad()
def test_same_numbers(tmp_path: Path, name: str, batch: int, height: int, width: int) -> None:
    ours, theirs = _pair(tmp_path, **CONFIGS[name])
    image = _noise(batch, ours.config.in_channels, height, width)
    a, b = ours.encode(image).latent_dist, theirs.encode(image).latent_dist
    assert relative_difference(a.parameters, b.parameters) <= 1e-5
    latent = b.mode()
    assert relative_difference(ours.decode(latent).sample, theirs.decode(latent).sample) <= 1e-5
    assert relative_difference(ours(image)[0], theirs(image)[0]) <= 1e-5
    draws = [
        model(image, sample_posterior=True, generator=torch.Generator().manual_seed(3), return_dict=False)[0]
        for model in (ours, theirs)
    ]
    assert relative_difference(*draws) <= 1e-5


TILES: list[dict[str, Any]] = [
    {},
    {"tile_sample_min_size": 64, "tile_latent_min_size": 8},
    {"tile_overlap_factor": 0.5},
    {"tile_overlap_factor": 0.0},
    {"tile_sample_min_size": 48, "tile_latent_min_size": 6, "tile_overlap_factor": 1 / 3},
]


@pytest.mark.parametrize("settings", TILES, ids=str)
@pytest.mark.parametrize("size", [(72, 72), (40, 96), (104, 80)])
@torch.no_grad()
def test_same_tiles(tmp_path: Path, settings: dict[str, Any], size: tuple[int, int]) -> None:
    ours, theirs = _pair(tmp_path, **FOUR)
    image = _noise(2, 3, *size)
    plain = ours.encode(image).latent_dist.mean
    for model in (ours, theirs):
        model.enable_tiling()
        model.enable_slicing()
        for name, value in settings.items():
            setattr(model, name, value)
    a, b = ours.encode(image).latent_dist.parameters, theirs.encode(image).latent_dist.parameters
    assert relative_difference(a, b) <= 1e-5
    assert relative_difference(a.chunk(2, dim=1)[0], plain) > 1e-5, "nothing was tiled"
    latent = b.chunk(2, dim=1)[0]
    assert relative_difference(ours.decode(latent).sample, theirs.decode(latent).sample) <= 1e-5
    ours.disable_tiling()
    ours.disable_slicing()
    assert relative_difference(ours.encode(image).latent_dist.mean, plain) <= 1e-6


@pytest.mark.parametrize("deterministic", [False, True])
def test_same_distribution(deterministic: bool) -> None:
    parameters, sample = 40 * _noise(3, 8, 4, 5), _noise(3, 4, 4, 5)
    a, b = (kind(parameters, deterministic) for kind in (DiagonalGaussianDistribution, TheirDistribution))
    other = DiagonalGaussianDistribution(_noise(3, 8, 4, 5))
    for name in ("mean", "std", "var", "logvar", "deterministic"):
        assert torch.equal(torch.as_tensor(getattr(a, name)), torch.as_tensor(getattr(b, name)))
    generators = [torch.Generator().manual_seed(k) for k in range(6)]
    assert torch.equal(a.sample(generators[:3]), b.sample([torch.Generator().manual_seed(k) for k in range(3)]))
    assert torch.equal(a.mode(), b.mode())
    for one, two in ((a.kl(), b.kl()), (a.kl(other), b.kl(other)), (a.nll(sample), b.nll(sample))):
        assert one.shape == (3,)
        assert torch.allclose(one, two.expand(3), rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_same_files_both_ways(tmp_path: Path, name: str) -> None:
    ours, theirs = _pair(tmp_path / "theirs", **CONFIGS[name])
    ours.save_pretrained(tmp_path / "ours")
    back, report = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    expected = theirs.state_dict()
    assert set(ours.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in back.state_dict().items())
    configs = [json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs")]
    for config in configs:
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]


@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "1x1 convolutions"])
@torch.no_grad()
def test_old_attention_keys(tmp_path: Path, convolutions: bool) -> None:
    ours, theirs = _pair(tmp_path, **FOUR)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {}
    for key, value in load_file(path).items():
        for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f"attentions.0.{new}." in key and value.ndim == 2 and convolutions:
                value = value[:, :, None, None]  # noqa: PLW2901
            key = key.replace(f".{new}.", f".{name}.")  # noqa: PLW2901
        old[key] = value.contiguous()
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in old
    save_file(old, path, metadata={"format": "pt"})
    image = _noise(1, 3, 32, 32)
    assert torch.equal(AutoencoderKL.from_pretrained(tmp_path)(image)[0], ours(image)[0])
    assert relative_difference(ours(image)[0], theirs(image)[0]) <= 1e-5


FULL_SIZE = {**FOUR, "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "sample_size": 512}
COUNTS = {"sd1": ({}, 83_653_863), "flux": (CONFIGS["flux"], None)}


@pytest.mark.parametrize("name", COUNTS)
def test_full_size_keys_and_shapes(name: str) -> None:
    options, count = COUNTS[name]
    config = {**options, **FULL_SIZE}
    with torch.device("meta"):
        ours, theirs = AutoencoderKL(**config), diffusers.AutoencoderKL(**config)
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert ours.num_parameters() == (count or theirs.num_parameters())
    assert (ours.tile_sample_min_size, ours.tile_latent_min_size) == (512, 64)
