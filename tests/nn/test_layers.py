"""Residual blocks, resampling, embeddings and transformers against diffusers, and against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.models import embeddings as their_embeddings
from diffusers.models import resnet as their_resnet
from diffusers.models.transformers.transformer_2d import Transformer2DModel as TheirTransformer
from torch import nn

from safelight.errors import ConfigError, InputError
from safelight.nn import embeddings, resnet
from safelight.nn.activations import activation
from safelight.nn.transformer import Context, Transformer2DModel

from ..helpers.compare import relative_difference
from ..helpers.repositories import randomise


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _difference(ours: nn.Module, theirs: nn.Module, *arguments: Any) -> float:
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        return relative_difference(ours.eval()(*arguments), theirs(*arguments))


BLOCKS: dict[str, dict[str, Any]] = {
    "same width": {},
    "another width": {"out_channels": 16},
    "no time": {"temb_channels": None},
    "scale_shift": {"time_embedding_norm": "scale_shift"},
    "activated time": {"skip_time_act": True},
    "groups_out": {"out_channels": 12, "groups_out": 6},
    "shortcut": {"use_in_shortcut": True},
    "output_scale_factor": {"output_scale_factor": 1.4},
    "up": {"up": True},
    "down": {"down": True},
    "up, smoothed": {"up": True, "kernel": "fir"},
    "down, smoothed": {"down": True, "kernel": "fir"},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_residual_block(name: str) -> None:
    options = {"in_channels": 8, "groups": 4, "temb_channels": 10, **BLOCKS[name]}
    time = None if options["temb_channels"] is None else _noise(2, 10, seed=1)
    ours, theirs = resnet.ResnetBlock2D(**options), their_resnet.ResnetBlock2D(**options)
    assert _difference(ours, theirs, _noise(2, 8, 6, 4), time) <= 1e-5


def test_residual_block_wants_its_time() -> None:
    with pytest.raises(InputError, match="temb"):
        resnet.ResnetBlock2D(in_channels=8, groups=4, temb_channels=10)(_noise(2, 8, 6, 4))
    with pytest.raises(ConfigError, match=r"resnet_time_scale_shift.*spatial"):
        resnet.ResnetBlock2D(in_channels=8, groups=4, time_embedding_norm="spatial")


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("use_conv", [True, False])
def test_downsampling(use_conv: bool, padding: int) -> None:
    ours = resnet.Downsample2D(8, use_conv, padding=padding)
    theirs = their_resnet.Downsample2D(8, use_conv, padding=padding, name="op" if use_conv else "conv")
    assert _difference(ours, theirs, _noise(2, 8, 7, 6)) <= 1e-5


@pytest.mark.parametrize("size", [None, (7, 9)])
def test_upsampling(size: tuple[int, int] | None) -> None:
    theirs = their_resnet.Upsample2D(8, use_conv=True)
    assert _difference(resnet.Upsample2D(8, use_conv=True), theirs, _noise(2, 8, 4, 5), size) <= 1e-5


@pytest.mark.parametrize("name", ["FirDownsample2D", "FirUpsample2D"])
def test_smoothing_keeps_constants(name: str) -> None:
    flat = torch.full((1, 3, 8, 8), 2.5)
    inside = getattr(resnet, name)()(flat)[..., 1:-1, 1:-1]
    assert torch.allclose(inside, torch.tensor(2.5))
    assert _difference(getattr(resnet, name)(), _fir(name), _noise(2, 3, 8, 6)) <= 1e-5


def _fir(name: str) -> nn.Module:
    from diffusers.models import downsampling, upsampling

    return getattr(downsampling if name == "FirDownsample2D" else upsampling, name)(3, out_channels=3)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("flip", [True, False])
def test_sinusoids(flip: bool, shift: int) -> None:
    t = torch.tensor([0, 1, 500, 999])
    ours = embeddings.timestep_embedding(t, 8, flip, shift)
    assert torch.allclose(ours, their_embeddings.get_timestep_embedding(t, 8, flip, shift), atol=1e-6)
    sines, cosines = reversed(ours.chunk(2, dim=1)) if flip else ours.chunk(2, dim=1)
    assert torch.allclose(sines**2 + cosines**2, torch.ones(4, 4), atol=1e-5)
    assert sines[1, 0] == pytest.approx(math.sin(1.0))
    assert embeddings.Timesteps(9, flip, shift)(t).shape == (4, 9)


def test_sinusoids_want_one_dimension() -> None:
    with pytest.raises(InputError, match=r"\(2, 1\)"):
        embeddings.timestep_embedding(torch.zeros(2, 1), 8)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_random_frequencies(flip: bool, log: bool) -> None:
    theirs = their_embeddings.GaussianFourierProjection(6, 2.0, set_W_to_weight=False, log=log, flip_sin_to_cos=flip)
    ours = embeddings.GaussianFourierProjection(6, 2.0, log, flip)
    assert not ours.weight.requires_grad
    assert _difference(ours, theirs, torch.tensor([0.1, 3.0, 40.0])) <= 1e-5


def test_times_as_a_batch() -> None:
    sample = torch.zeros(3, 1, 2, 2)
    for time in (7, torch.tensor(7), torch.tensor([7])):
        assert embeddings.batch_of_times(time, sample).tolist() == [7, 7, 7]
    assert embeddings.batch_of_times(0.5, sample).tolist() == [0.5] * 3
    assert embeddings.batch_of_times(torch.tensor([1, 2, 3]), sample).tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"timestep.*\(2,\).*3"):
        embeddings.batch_of_times(torch.tensor([1, 2]), sample)


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "convolutions": {},
    "linear": {"use_linear_projection": True},
    "deep": {"num_layers": 3},
    "only_cross_attention": {"only_cross_attention": True},
    "upcast_attention": {"upcast_attention": True},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer(name: str) -> None:
    options = {"num_layers": 1, "cross_attention_dim": 12, "norm_num_groups": 4, **TRANSFORMERS[name]}
    theirs = randomise(TheirTransformer(2, 8, in_channels=16, **options))
    ours = Transformer2DModel(2, 8, in_channels=16, **options)
    ours.load_state_dict(theirs.state_dict())
    x, text = _noise(2, 16, 3, 5), _noise(2, 7, 12, seed=1)
    with torch.no_grad():
        expected = theirs(x, encoder_hidden_states=text).sample
        assert relative_difference(ours.eval()(x, Context(text)), expected) <= 1e-5


@pytest.mark.parametrize("name", ["swish", "silu", "mish", "gelu", "relu", "SiLU"])
def test_activations(name: str) -> None:
    from diffusers.models.activations import get_activation

    x = _noise(100)
    assert torch.equal(activation(name)(x), get_activation(name)(x))


def test_unknown_activation() -> None:
    with pytest.raises(ConfigError, match=r"time_embedding_act_fn is 'gelou'.*gelu"):
        activation("gelou", "time_embedding_act_fn")
