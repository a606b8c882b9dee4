from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.errors import ConfigError, InputError, UnknownArgumentError
from safelight.models.autoencoder_kl import AutoencoderKL, DiagonalGaussianDistribution

from ..helpers.repositories import VAE, randomise


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return randomise(AutoencoderKL(**VAE))


def test_shapes(vae: AutoencoderKL) -> None:
    image = torch.randn(2, 3, 40, 48)
    distribution = vae.encode(image).latent_dist
    assert distribution.mean.shape == distribution.sample().shape == (2, 4, 5, 6)
    assert vae.decode(distribution.mode()).sample.shape == vae(image).sample.shape == image.shape
    assert vae.encode(image, return_dict=False)[0].std.shape == (2, 4, 5, 6)
    assert vae.decode(distribution.mode(), return_dict=False)[0].shape == image.shape


def test_slices_are_the_batch(vae: AutoencoderKL) -> None:
    image = torch.randn(3, 3, 32, 32)
    whole = vae(image).sample
    vae.enable_slicing()
    sliced = vae(image).sample
    vae.disable_slicing()
    assert torch.allclose(whole, sliced, atol=1e-5)


def test_tiles_of_a_constant_have_no_seams() -> None:
    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat_interleave(8, 2).repeat_interleave(8, 3)

    vae = AutoencoderKL(**VAE, use_post_quant_conv=False)
    vae.decoder = Doubling()
    vae.enable_tiling()
    ramp = torch.linspace(0, 1, 30).expand(1, 4, 21, 30)
    assert torch.allclose(vae.decode(ramp).sample, Doubling()(ramp), atol=1e-6)


def test_eight_threads_tile_as_one() -> None:
    vae = randomise(AutoencoderKL(**{**VAE, "sample_size": 32}))
    vae.enable_tiling()
    latents = [torch.randn(1, 4, 4 + k % 3, 5) for k in range(8)]
    with torch.no_grad():
        alone = [vae.decode(latent).sample for latent in latents]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda z: vae.decode(z).sample, latents))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_checkpointing_gives_the_same_gradients() -> None:
    vae, image, gradients = randomise(AutoencoderKL(**VAE)), torch.randn(1, 3, 32, 32), []
    for switch in (vae.disable_gradient_checkpointing, vae.enable_gradient_checkpointing):
        switch()
        vae.zero_grad()
        vae(image).sample.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in vae.parameters() if parameter.grad is not None])
    assert vae.encoder.gradient_checkpointing
    assert vae.decoder.gradient_checkpointing
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("force_upcast", "expected"), [(True, torch.float32), (False, torch.float16)])
def test_auto_is_not_float16_where_that_overflows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force_upcast: bool, expected: torch.dtype
) -> None:
    AutoencoderKL(**VAE, force_upcast=force_upcast).save_pretrained(tmp_path)
    monkeypatch.setattr("safelight.runtime.precision.fast_dtype", lambda device: torch.float16)
    assert AutoencoderKL.from_pretrained(tmp_path, dtype="auto").dtype == expected
    assert AutoencoderKL.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


def test_the_distribution_is_the_formula() -> None:
    mean, logvar = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), math.log(4.0))
    distribution = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))
    assert torch.allclose(distribution.std, torch.tensor(2.0))
    # 4 values of (mean² + var − 1 − log var)/2
    assert distribution.kl().item() == pytest.approx(4 * 0.5 * (0.25 + 4 - 1 - math.log(4)))
    assert distribution.kl(distribution).item() == pytest.approx(0.0, abs=1e-6)
    normal = torch.distributions.Normal(mean, 2.0)
    sample = torch.randn(1, 1, 2, 2)
    assert distribution.nll(sample).item() == pytest.approx(-normal.log_prob(sample).sum().item(), rel=1e-5)
    draws = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1).expand(20_000, -1, -1, -1)).sample(
        torch.Generator().manual_seed(0)
    )
    assert draws.mean().item() == pytest.approx(0.5, abs=0.03)
    assert draws.std().item() == pytest.approx(2.0, abs=0.03)


BAD_CONFIGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"down_block_types": ("DownEncoderBlock",)}, ConfigError, "DownEncoderBlock2D"),
    ({"up_block_types": ("UpDecoderBlock2D",) * 2}, ConfigError, "up_block_types"),
    ({"block_out_channels": (30,)}, ConfigError, "norm_num_groups"),
    ({"act_fn": "sillu"}, ConfigError, "sillu"),
    ({"latent_chanels": 4}, UnknownArgumentError, "latent_channels"),
]


@pytest.mark.parametrize(("config", "error", "words"), BAD_CONFIGS, ids=lambda value: str(value)[:30])
def test_bad_configs(config: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        AutoencoderKL(**config)


def test_bad_inputs(vae: AutoencoderKL) -> None:
    for call, words in (
        (lambda: vae.encode(torch.zeros(1, 4, 32, 32)), r"3, height"),
        (lambda: vae.encode(torch.zeros(3, 32, 32)), r"\(3, 32, 32\)"),
        (lambda: vae.encode(torch.zeros(1, 3, 32, 7)), "at least 8"),
        (lambda: vae.decode(torch.zeros(1, 3, 4, 4)), r"4, height"),
        (lambda: vae.decode([1]), "list"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    vae.enable_tiling()
    with pytest.raises(InputError, match="tile_sample_min_size"):
        vae.encode(torch.zeros(1, 3, 100, 100))  # the last of the tiles of 64, at 96, would be 4 thin
    vae.disable_tiling()
