from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from safelight import UNet2DConditionModel, UNet2DModel
from safelight.errors import ConfigError, InputError, UnknownArgumentError
from safelight.models.attention_processor import Attention, AttnProcessor

from ..helpers.repositories import UNET, randomise
from ..helpers.unets import condition_config, inputs, unconditional_config

PLAIN = {**UNET, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
UNCONDITIONAL = {key: value for key, value in PLAIN.items() if key != "cross_attention_dim"}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return randomise(UNet2DConditionModel(**UNET))


@pytest.fixture(scope="module")
def call() -> dict[str, Any]:
    return inputs(UNET)


class KeepMaps:
    """Attention as researchers write it, step by step, keeping the map of each layer."""

    def __init__(self) -> None:
        self.maps: list[torch.Tensor] = []

    def __call__(self, attn: Attention, hidden_states: Any, encoder_hidden_states: Any = None, **more: Any) -> Any:
        batch, length, _ = hidden_states.shape if encoder_hidden_states is None else encoder_hidden_states.shape
        attention_mask = attn.prepare_attention_mask(more.get("attention_mask"), length, batch)
        query = attn.to_q(hidden_states) / more.get("temperature", 1.0)
        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states
        elif attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query, key, value = (attn.head_to_batch_dim(tensor) for tensor in (query, key, value))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        self.maps.append(probabilities)
        hidden_states = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        return attn.to_out[1](attn.to_out[0](hidden_states))


def test_processors_written_elsewhere(unet: UNet2DConditionModel, call: dict[str, Any]) -> None:
    with torch.no_grad():
        expected = unet(**call).sample
        keeper = KeepMaps()
        unet.set_attn_processor(keeper)
        try:
            assert torch.allclose(unet(**call).sample, expected, atol=1e-5)
            assert len(keeper.maps) == len(unet.attn_processors) == 8
            assert {tuple(each.shape[1:]) for each in keeper.maps} >= {(64, 64), (64, 7)}
            assert all(torch.allclose(each.sum(-1), torch.ones(each.shape[:2])) for each in keeper.maps)
            hot = unet(**call, cross_attention_kwargs={"temperature": 50.0, "scale": 1.0}).sample
            assert not torch.allclose(hot, expected, atol=1e-4)
        finally:
            unet.set_default_attn_processor()
        assert torch.equal(unet(**call).sample, expected)


def test_processors_may_take_something_else_for_text(unet: UNet2DConditionModel, call: dict[str, Any]) -> None:
    class Second(AttnProcessor):
        def __call__(self, attn: Attention, hidden_states: Any, encoder_hidden_states: Any = None, **more: Any) -> Any:
            text = None if encoder_hidden_states is None else encoder_hidden_states["second"]
            return super().__call__(attn, hidden_states, text, more.get("attention_mask"))

    given = {**call, "encoder_hidden_states": {"second": call["encoder_hidden_states"]}}
    mask = torch.ones(2, call["encoder_hidden_states"].shape[1])
    mask[:, 3:] = 0
    with torch.no_grad():
        expected = unet(**call, encoder_attention_mask=mask).sample
        unet.set_attn_processor(Second())
        try:
            assert torch.equal(unet(**given, encoder_attention_mask=mask).sample, expected)
        finally:
            unet.set_default_attn_processor()
    with pytest.raises(InputError, match="encoder_hidden_states is a dict"):
        unet(**given)


def test_processors_by_name(unet: UNet2DConditionModel) -> None:
    names = unet.attn_processors
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.processor" in names
    assert all(type(processor) is AttnProcessor for processor in names.values())
    one = next(iter(names))
    with pytest.raises(InputError, match="mid_blok"):
        unet.set_attn_processor({**names, "mid_blok.processor": AttnProcessor()})
    with pytest.raises(InputError, match="no processor was given"):
        unet.set_attn_processor({one: KeepMaps()})
    assert type(unet.attn_processors[one]) is AttnProcessor
    unet.set_attn_processor({**names, one: KeepMaps()})
    assert sum(type(processor) is KeepMaps for processor in unet.attn_processors.values()) == 1
    unet.set_attn_processor(names)


def test_scale_is_accepted_and_other_arguments_are_named(unet: UNet2DConditionModel, call: dict[str, Any]) -> None:
    with torch.no_grad():
        assert torch.equal(unet(**call, cross_attention_kwargs={"scale": 0.5}).sample, unet(**call).sample)
    with pytest.raises(InputError, match=r"temperature.*AttnProcessor"):
        unet(**call, cross_attention_kwargs={"temperature": 2.0})


def test_a_tuple_on_request(unet: UNet2DConditionModel, call: dict[str, Any]) -> None:
    with torch.no_grad():
        assert torch.equal(unet(**call, return_dict=False)[0], unet(**call).sample)
        plain = randomise(UNet2DModel(**UNCONDITIONAL))
        picture = torch.randn(1, 3, 8, 8)
        assert torch.equal(plain(picture, 3, return_dict=False)[0], plain(picture, 3).sample)


def _state(module: nn.Module) -> dict[str, Any]:
    return {name: dict(vars(part)) for name, part in module.named_modules()}


@pytest.mark.parametrize("name", ["sdxl", "resnet samplers", "class_embeddings_concat"])
def test_a_forward_leaves_no_trace(name: str) -> None:
    config = condition_config(name)
    unet = randomise(UNet2DConditionModel(**config))
    before = _state(unet)
    with torch.no_grad():
        unet(**inputs(config, size=(5, 7)))
    assert _state(unet) == before


def test_threads_share_a_model(unet: UNet2DConditionModel) -> None:
    calls = [inputs(UNET, seed=seed, size=(8 + seed, 8)) for seed in range(6)]

    def run(arguments: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            return unet(**arguments).sample

    alone = [run(each) for each in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        together = list(pool.map(run, calls))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("layout", ["linear", "convolution"])
def test_old_attention_keys(layout: str, tmp_path: Path) -> None:
    config = unconditional_config("ddpm")
    model = randomise(UNet2DModel(**config))
    model.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, tensor in load_file(path).items():
        new = next((name for name in old if f".{name}." in key), None)
        spelled = key if new is None else key.replace(new, old[new])
        as_convolution = layout == "convolution" and new is not None and tensor.ndim == 2
        tensors[spelled] = tensor[:, :, None, None].contiguous() if as_convolution else tensor
    assert sum("proj_attn" in key for key in tensors) > 0
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = UNet2DModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sdxl", "fourier time", "addition_embed_type text"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    config = condition_config(name)
    model = randomise(UNet2DConditionModel(**config))
    model.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    assert loaded.config["block_out_channels"] == list(config["block_out_channels"])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs(config)).sample, model(**inputs(config)).sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["sdxl", "class_embed_type timestep", "fourier time"])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    config = condition_config(name)
    unet = randomise(UNet2DConditionModel(**config))
    arguments = inputs(config)
    with torch.no_grad():
        expected = unet(**arguments).sample
        unet.to(dtype)
        for key in ("sample", "encoder_hidden_states"):
            arguments[key] = arguments[key].to(dtype)
        if "added_cond_kwargs" in arguments:
            arguments["added_cond_kwargs"]["text_embeds"] = arguments["added_cond_kwargs"]["text_embeds"].to(dtype)
        actual = unet(**arguments).sample
    assert actual.dtype == dtype
    # The embedding of a time near 1000 loses much in bfloat16, whose steps are 4 there.
    assert (actual.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_gradient_checkpointing_is_a_switch(unet: UNet2DConditionModel) -> None:
    assert not unet.is_gradient_checkpointing
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    unet.disable_gradient_checkpointing()
    assert not unet.is_gradient_checkpointing


# name -> what is wrong in the config, what the message must say
BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown block": ({"down_block_types": ("CrossAttnDownBlock2D", "DownBlok2D")}, "DownBlok2D.*DownBlock2D"),
    "block of the wrong way": (
        {"down_block_types": ("CrossAttnDownBlock2D", "UpBlock2D")},
        "down_block_types.*Up",
    ),
    "one block too few": ({"up_block_types": ("UpBlock2D",)}, "up_block_types.*1.*block_out_channels.*2"),
    "one width too few": ({"block_out_channels": (16,)}, "down_block_types.*2.*block_out_channels.*1"),
    "unknown middle": ({"mid_block_type": "UNetMidBlok2D"}, "mid_block_type.*UNetMidBlok2D.*UNetMidBlock2D"),
    "heads that do not fit": ({"attention_head_dim": 5}, "heads.*5.*16"),
    "heads per block": ({"attention_head_dim": (2, 2, 2)}, "attention_head_dim.*3.*2"),
    "num_attention_heads per block": ({"num_attention_heads": (2, 2, 2)}, "num_attention_heads.*3.*2"),
    "widths of text per block": ({"cross_attention_dim": (8, 8, 8)}, "cross_attention_dim.*3.*2"),
    "no layers": ({"layers_per_block": 0}, "layers_per_block is 0"),
    "layers per block": ({"layers_per_block": (1, 1, 1)}, "layers_per_block.*3.*2"),
    "only_cross_attention per block": ({"only_cross_attention": (True,)}, "only_cross_attention.*1.*2"),
    "groups that do not fit": ({"norm_num_groups": 7}, "norm_num_groups is 7.*16"),
    "no groups": ({"norm_num_groups": None}, "norm_num_groups.*None"),
    "nested layers without their reverse": (
        {"transformer_layers_per_block": [[1], [1]]},
        "reverse_transformer_layers_per_block",
    ),
    "two texts at a time": ({"dual_cross_attention": True}, "dual_cross_attention"),
    "another family's text": ({"encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 8}, "text_image_proj"),
    "another family's addition": ({"addition_embed_type": "image_hint", "encoder_hid_dim": 8}, "image_hint"),
    "another family's blocks": ({"down_block_types": ("KDownBlock2D",) * 2}, "down_block_types.*KDownBlock2D"),
    "another family's norm": ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift.*ada_group"),
    "unknown activation": ({"act_fn": "swishh"}, "act_fn.*swishh.*swish"),
    "unknown time_embedding_type": ({"time_embedding_type": "learnt"}, "time_embedding_type.*learnt"),
    "unknown class_embed_type": ({"class_embed_type": "projecton"}, "class_embed_type.*projecton.*projection"),
    "projection of unknown width": ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim"),
    "added times of unknown width": (
        {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 30},
        "addition_time_embed_dim",
    ),
    "added embedding of unknown width": (
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 4},
        "projection_class_embeddings_input_dim",
    ),
    "unknown addition_embed_type": ({"addition_embed_type": "txt"}, "addition_embed_type.*txt.*text"),
    "encoder_hid_dim_type without its width": ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim"),
    "unknown encoder_hid_dim_type": (
        {"encoder_hid_dim_type": "text_projj", "encoder_hid_dim": 4},
        "encoder_hid_dim_type.*text_projj.*text_proj",
    ),
    "unknown scale shift": ({"resnet_time_scale_shift": "scale_shft"}, "scale_shft.*scale_shift"),
    "unknown attention_type": ({"attention_type": "gatedd"}, "attention_type.*gatedd"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_config(name: str) -> None:
    changes, words = BAD_CONFIGS[name]
    with pytest.raises(ConfigError, match=words):
        UNet2DConditionModel(**{**UNET, **changes})


BAD_UNCONDITIONAL: dict[str, tuple[dict[str, Any], str]] = {
    "attention to text": (
        {"down_block_types": ("CrossAttnDownBlock2D",) * 2},
        "down_block_types.*CrossAttnDown",
    ),
    "text in the middle": ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type.*UNetMidBlock2DCrossAttn"),
    "head that does not fit": ({"attention_head_dim": 5}, "attention_head_dim.*5.*32"),
    "learned time without a number": ({"time_embedding_type": "learned"}, "num_train_timesteps"),
    "unknown class_embed_type": ({"class_embed_type": "projection"}, "class_embed_type.*projection"),
    "unknown downsample_type": (
        {"downsample_type": "convv", "down_block_types": ("AttnDownBlock2D",) * 2},
        "downsample_type.*convv.*conv",
    ),
    "unknown upsample_type": (
        {"upsample_type": "resnt", "up_block_types": ("AttnUpBlock2D",) * 2},
        "upsample_type.*resnt.*resnet",
    ),
    "pictures of four channels beside": (
        {"down_block_types": ("SkipDownBlock2D",) * 2, "in_channels": 4},
        "in_channels is 4",
    ),
}


@pytest.mark.parametrize("name", BAD_UNCONDITIONAL)
def test_bad_unconditional_config(name: str) -> None:
    changes, words = BAD_UNCONDITIONAL[name]
    with pytest.raises(ConfigError, match=words):
        UNet2DModel(**{**UNCONDITIONAL, **changes})


def test_unknown_argument() -> None:
    with pytest.raises(UnknownArgumentError, match=r"atention_head_dim.*attention_head_dim"):
        UNet2DConditionModel(atention_head_dim=8)


# name -> the config's entry in helpers/unets.py, what is wrong in the call, what the message must say
BAD_CALLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "channels": ("sd1", {"sample": torch.zeros(2, 5, 8, 8)}, r"sample.*\(2, 5, 8, 8\).*4"),
    "not a picture": ("sd1", {"sample": torch.zeros(4, 8, 8)}, r"sample.*\(4, 8, 8\)"),
    "no text": ("sd1", {"encoder_hidden_states": None}, "encoder_hidden_states.*NoneType"),
    "text for more pictures": ("sd1", {"encoder_hidden_states": torch.zeros(3, 7, 32)}, r"encoder_hidden_states.*3.*2"),
    "text of another width": ("sd1", {"encoder_hidden_states": torch.zeros(2, 7, 30)}, "encoder_hidden_states.*30.*32"),
    "text of another width, projected": (
        "encoder_hid_dim",
        {"encoder_hidden_states": torch.zeros(2, 7, 32)},
        "encoder_hidden_states.*32.*20",
    ),
    "text without tokens": ("sd1", {"encoder_hidden_states": torch.zeros(2, 32)}, r"encoder_hidden_states.*\(2, 32\)"),
    "times for more pictures": ("sd1", {"timestep": torch.zeros(3)}, r"timestep.*\(3,\).*2"),
    "no class": ("class labels", {"class_labels": None}, "class_labels"),
    "class out of range": ("class labels", {"class_labels": torch.tensor([0, 10])}, "class_labels.*10"),
    "classes for more pictures": ("class labels", {"class_labels": torch.tensor([0, 1, 2])}, "class_labels.*3.*2"),
    "class for a model without": ("sd1", {"class_labels": torch.tensor([0, 1])}, "class_labels"),
    "no added conditions": ("sdxl", {"added_cond_kwargs": None}, "added_cond_kwargs.*text_embeds"),
    "no added times": ("sdxl", {"added_cond_kwargs": {"text_embeds": torch.zeros(2, 20)}}, "time_ids"),
    "no added text": ("sdxl", {"added_cond_kwargs": {"time_ids": torch.zeros(2, 6)}}, "text_embeds"),
    "a time too few": (
        "sdxl",
        {"added_cond_kwargs": {"text_embeds": torch.zeros(2, 20), "time_ids": torch.zeros(2, 5)}},
        "time_ids.*68",
    ),
    "guidance for a model without": ("sd1", {"timestep_cond": torch.zeros(2, 12)}, "timestep_cond.*time_cond_proj_dim"),
    "a mask of another length": ("sd1", {"encoder_attention_mask": torch.ones(2, 5)}, "encoder_attention_mask.*5.*7"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(name: str) -> None:
    entry, changes, words = BAD_CALLS[name]
    config = condition_config(entry)
    with pytest.raises(InputError, match=words):
        UNet2DConditionModel(**config)(**{**inputs(config), **changes})


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        ({}, {"sample": torch.zeros(1, 5, 8, 8)}, "sample.*5.*3"),
        ({}, {"sample": torch.zeros(3, 8, 8)}, r"\(3, 8, 8\)"),
        ({}, {"class_labels": torch.tensor([1])}, "class_labels"),
        ({"num_class_embeds": 3}, {}, "class_labels"),
        ({"num_class_embeds": 3}, {"class_labels": torch.tensor([3])}, "class_labels.*3"),
    ],
)
def test_bad_unconditional_call(config: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    model = UNet2DModel(**{**UNCONDITIONAL, **config})
    with pytest.raises(InputError, match=words):
        model(**{"sample": torch.zeros(1, 3, 8, 8), "timestep": 1, **changes})
