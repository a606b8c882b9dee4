"""Small U-Net configs that between them use every block type and option, and what each forward needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .repositories import DDPM_UNET, UNET, randomise

TOKENS = 7
THREE = {
    "block_out_channels": (16, 24, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}


def _blocks(down: str, up: str, **more: Any) -> dict[str, Any]:
    return {"down_block_types": (down, down), "up_block_types": (up, up), **more}


# name -> what differs from repositories.UNET
CONDITION: dict[str, dict[str, Any]] = {
    # The families.
    "sd1": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True},
    "sdxl": {
        **THREE,
        **TEXT_TIME,
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (2, 3, 4),
        "use_linear_projection": True,
        "projection_class_embeddings_input_dim": 6 * 8 + 20,
        "layers_per_block": 2,
    },
    "sdxl refiner": {
        **TEXT_TIME,
        "block_out_channels": (16, 24, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 3, 4, 4),
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 5 * 8 + 20,
    },
    "inpainting": {"in_channels": 9},
    "instruct-pix2pix": {"in_channels": 8},
    "x4 upscaler": {**THREE, "in_channels": 7, "num_class_embeds": 40, "only_cross_attention": (True, True, False)},
    "lcm": {"time_cond_proj_dim": 12},
    "unclip": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    # The options, singly.
    "out_channels": {"out_channels": 6},
    "center_input_sample": {"center_input_sample": True},
    "sin before cos": {"flip_sin_to_cos": False},
    "freq_shift": {"freq_shift": 1},
    "one middle without attention": {"mid_block_type": "UNetMidBlock2D"},
    "no middle": {"mid_block_type": None},
    "only_cross_attention": {"only_cross_attention": True},
    "layers per block": {"layers_per_block": 2},
    "layers of each block": {"layers_per_block": (1, 3)},
    "downsample_padding": {"downsample_padding": 0},
    "mid_block_scale_factor": {"mid_block_scale_factor": 1.5},
    "dropout": {"dropout": 0.1},
    "act_fn": {"act_fn": "gelu"},
    "norm_eps": {"norm_eps": 1e-3},
    "cross_attention_dim of each block": {"cross_attention_dim": (32, 32)},
    "transformer layers": {"transformer_layers_per_block": 2},
    "transformer layers, nested": {
        **THREE,
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, [2, 1], [3, 1]],
        "reverse_transformer_layers_per_block": [[1, 2, 1], [2, 1, 1], 1],
    },
    "encoder_hid_dim": {"encoder_hid_dim": 20},
    "encoder_hid_dim_type": {"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"},
    "heads of each block": {"attention_head_dim": (2, 8)},
    "use_linear_projection": {"use_linear_projection": True},
    "class labels": {"num_class_embeds": 10},
    "class_embed_type timestep": {"class_embed_type": "timestep", "act_fn": "mish"},
    "class_embed_type identity": {"class_embed_type": "identity"},
    "class_embed_type simple_projection": {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 20,
    },
    "class_embeddings_concat": {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 20,
        "class_embeddings_concat": True,
    },
    "addition_embed_type text": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
    "addition_embed_type text, projected": {
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "encoder_hid_dim": 20,
    },
    "upcast_attention": {"upcast_attention": True},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift, plain middle": {"resnet_time_scale_shift": "scale_shift", "mid_block_type": "UNetMidBlock2D"},
    "fourier time": {"time_embedding_type": "fourier"},
    "fourier time, wide": {"time_embedding_type": "fourier", "time_embedding_dim": 48, "flip_sin_to_cos": False},
    "time_embedding_dim": {"time_embedding_dim": 48},
    "time_embedding_act_fn": {"time_embedding_act_fn": "gelu"},
    "timestep_post_act": {"timestep_post_act": "silu"},
    "convolution kernels": {"conv_in_kernel": 5, "conv_out_kernel": 1},
    "resnet samplers": {
        **_blocks("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1.3,
    },
    "spatial attention": _blocks("AttnDownBlock2D", "AttnUpBlock2D"),
    "added keys": {
        **_blocks("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    },
    "added keys, all options": {
        **_blocks("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "block_out_channels": (32, 32),
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1.3,
        "resnet_time_scale_shift": "scale_shift",
        "cross_attention_norm": "layer_norm",
        "mid_block_only_cross_attention": True,
        "only_cross_attention": False,
    },
    "added keys, group norm, only": {
        **_blocks("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "cross_attention_norm": "group_norm",
        "only_cross_attention": True,
    },
    "gated": {"attention_type": "gated"},
    "gated-text-image": {"attention_type": "gated-text-image"},
    "old prefix": {
        "down_block_types": ("UNetResCrossAttnDownBlock2D", "UNetResDownBlock2D"),
        "up_block_types": ("UNetResUpBlock2D", "UNetResCrossAttnUpBlock2D"),
    },
}

_NCSN = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "time_embedding_type": "fourier",
    "mid_block_scale_factor": 2**0.5,
    "downsample_padding": 1,
}

# name -> what differs from repositories.DDPM_UNET
UNCONDITIONAL: dict[str, dict[str, Any]] = {
    # The families.
    "ddpm": {},
    "ldm": {"in_channels": 4, "out_channels": 4, "downsample_padding": 1, "freq_shift": 0, "flip_sin_to_cos": True},
    "ncsn++": _NCSN,
    # The options, singly.
    "center_input_sample": {"center_input_sample": True},
    "fourier time": {"time_embedding_type": "fourier"},
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 50},
    "time_embedding_dim": {"time_embedding_dim": 48},
    "no middle": {"mid_block_type": None},
    "mid_block_scale_factor": {"mid_block_scale_factor": 1.5},
    "layers per block": {"layers_per_block": 2},
    "downsample_type": {"downsample_type": "resnet"},
    "upsample_type": {"upsample_type": "resnet"},
    "dropout": {"dropout": 0.1},
    "act_fn": {"act_fn": "relu"},
    "attention_head_dim": {"attention_head_dim": 4},
    "attn_norm_num_groups": {"attn_norm_num_groups": 4},
    "norm_eps": {"norm_eps": 1e-3},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "no attention in the middle": {"add_attention": False},
    "class labels": {"num_class_embeds": 10},
    "class_embed_type timestep": {"class_embed_type": "timestep"},
    "class_embed_type identity": {"class_embed_type": "identity"},
    "resnet samplers": {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 4,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 4,
        "resnet_time_scale_shift": "scale_shift",
    },
    "skip blocks": {**_NCSN, "time_embedding_type": "positional", "norm_num_groups": None},
    "skip blocks, attention below": {
        **_NCSN,
        "block_out_channels": (32, 32),
        "down_block_types": ("AttnSkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "AttnSkipUpBlock2D"),
    },
    "old prefix": {
        "down_block_types": ("UNetResDownBlock2D",) * 2 + ("UNetResAttnDownBlock2D",) * 2,
        "up_block_types": ("UNetResAttnUpBlock2D",) * 2 + ("UNetResUpBlock2D",) * 2,
    },
}


def condition_config(name: str) -> dict[str, Any]:
    return {**UNET, **CONDITION[name]}


def unconditional_config(name: str) -> dict[str, Any]:
    return {**DDPM_UNET, **UNCONDITIONAL[name]}


def matched(ours: type[nn.Module], theirs: type[nn.Module], config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Both libraries' models with one set of random weights, none of them zero."""
    reference = randomise(theirs(**config))
    model = ours(**config)
    model.load_state_dict(reference.state_dict(), strict=True)
    return model.eval(), reference.eval()


def _boxes(batch: int, width: int, images: bool, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """Three boxes per picture, of which the last is padding, with what belongs in them."""
    masks = torch.tensor([1.0, 1.0, 0.0]).expand(batch, 3)
    embeddings = torch.randn((2, batch, 3, width), generator=draw)
    boxes = {"boxes": torch.rand((batch, 3, 4), generator=draw), "masks": masks}
    if not images:
        return {**boxes, "positive_embeddings": embeddings[0]}
    named = {"phrases_embeddings": embeddings[0], "image_embeddings": embeddings[1]}
    return {**boxes, **named, "phrases_masks": masks, "image_masks": masks.flip(1) * masks}


def inputs(config: dict[str, Any], batch: int = 2, size: tuple[int, int] = (8, 8), seed: int = 1) -> dict[str, Any]:
    """A forward's arguments: random, and with what the config asks for beside sample and timestep."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    arguments: dict[str, Any] = {
        "sample": noise(batch, config.get("in_channels", 4), *size),
        "timestep": torch.arange(batch) * 11 + 3,
    }
    width = config.get("projection_class_embeddings_input_dim")
    if config.get("num_class_embeds") is not None:
        arguments["class_labels"] = torch.arange(batch) % 10
    elif config.get("class_embed_type") == "timestep":
        arguments["class_labels"] = torch.arange(batch) * 5 + 1
    elif config.get("class_embed_type") == "identity":
        arguments["class_labels"] = noise(batch, config["block_out_channels"][0] * 4)
    elif config.get("class_embed_type") is not None:
        arguments["class_labels"] = noise(batch, width)
    if config.get("cross_attention_dim") is None:
        return arguments
    text = config["cross_attention_dim"]
    text = config.get("encoder_hid_dim") or (text if isinstance(text, int) else text[0])
    arguments["encoder_hidden_states"] = noise(batch, TOKENS, text)
    if "gated" in config.get("attention_type", ""):
        images = config["attention_type"] == "gated-text-image"
        arguments["cross_attention_kwargs"] = {"gligen": _boxes(batch, text, images, draw)}
    if config.get("time_cond_proj_dim") is not None:
        arguments["timestep_cond"] = noise(batch, config["time_cond_proj_dim"])
    if config.get("addition_embed_type") == "text_time":
        ids = (width - 20) // config["addition_time_embed_dim"]
        arguments["added_cond_kwargs"] = {"text_embeds": noise(batch, 20), "time_ids": 64 * noise(batch, ids).abs()}
    return arguments


_SD1 = {"sample_size": 64, "cross_attention_dim": 768}
_SD2 = {
    "sample_size": 96,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
_SDXL = {
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": (1, 2, 10),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
}
_REFINER = {
    **_SDXL,
    "attention_head_dim": (6, 12, 24, 24),
    "block_out_channels": (384, 768, 1536, 1536),
    "cross_attention_dim": 1280,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_CAT = {
    "sample_size": 256,
    "attention_head_dim": None,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
# name -> class, config, number of parameters
FULL_SIZE: dict[str, tuple[str, dict[str, Any], int]] = {
    "stable-diffusion-v1-5": ("UNet2DConditionModel", _SD1, 859_520_964),
    "stable-diffusion-2-1": ("UNet2DConditionModel", _SD2, 865_910_724),
    "stable-diffusion-xl-base-1.0": ("UNet2DConditionModel", _SDXL, 2_567_463_684),
    "stable-diffusion-xl-refiner-1.0": ("UNet2DConditionModel", _REFINER, 2_259_526_660),
    "ddpm-cat-256": ("UNet2DModel", _CAT, 113_673_219),
}
