"""Small repositories written by diffusers itself: real layouts, nonzero random weights everywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

# Below this cosine distance a picture is flagged; 1.0 flags none, -1.0 flags all.
NEVER_FLAGGED, ALWAYS_FLAGGED = 1.0, -1.0

UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 32,
}
STABLE_DIFFUSION_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
DDPM_UNET = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": (16, 16, 32, 32),
    "center_input_sample": False,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 16,
    "time_embedding_type": "positional",
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
# All that the scheduler configs of 2022 held.
DDPM_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with every parameter nonzero and random: those that start as constants (norms, biases) are perturbed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            start = parameter.mean() if parameter.ndim == 1 else torch.zeros(())
            parameter.copy_(start + fan_in**-0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def write_stable_diffusion(
    folder: str | Path,
    *,
    seed: int = 0,
    scheduler: str = "PNDMScheduler",
    scheduler_config: dict[str, Any] | None = None,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    text_encoder: dict[str, Any] | None = None,
    safety_checker: bool = True,
    safety_threshold: float = NEVER_FLAGGED,
    dtype: torch.dtype = torch.float32,
    old_text_keys: bool = False,
    **save_options: Any,
) -> Path:
    """A repository in Stable Diffusion 1.5's layout, with CLIP's real tokenizer and small random models.

    The dicts override config entries. `old_text_keys` spells the text encoder as the Hub's files do
    (`text_model.…`, with `position_ids`). `save_options` go to `save_pretrained` (`variant`, `max_shard_size`, …).
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from .clip_vocab import write_clip_tokenizer

    folder = Path(folder)
    write_clip_tokenizer(folder / "tokenizer")
    config = {**STABLE_DIFFUSION_SCHEDULER, **(scheduler_config or {})}
    checker, extractor = _safety(seed, safety_threshold) if safety_checker else (None, None)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=randomise(diffusers.AutoencoderKL(**{**VAE, **(vae or {})}), seed + 1),
        text_encoder=randomise(CLIPTextModel(CLIPTextConfig(**{**TEXT, **(text_encoder or {})})), seed + 2),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=randomise(diffusers.UNet2DConditionModel(**{**UNET, **(unet or {})}), seed + 3),
        scheduler=getattr(diffusers, scheduler).from_config(config),
        safety_checker=checker,
        feature_extractor=extractor,
        requires_safety_checker=safety_checker,
    )
    pipeline.to(dtype).save_pretrained(folder, **save_options)
    # transformers 5 saves one tokenizer.json; SD1.5's repository holds vocab.json and merges.txt.
    shutil.rmtree(folder / "tokenizer")
    write_clip_tokenizer(folder / "tokenizer")
    if old_text_keys:
        for path in (folder / "text_encoder").glob("*.safetensors"):
            _spell_as_transformers_4(path)
    return folder


def _safety(seed: int, threshold: float) -> tuple[Any, Any]:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    config = CLIPConfig(text_config={**TEXT, "vocab_size": 8}, vision_config=VISION, projection_dim=32)
    checker = randomise(StableDiffusionSafetyChecker(config), seed + 4)
    for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        weights.data.fill_(threshold)
    size = VISION["image_size"]
    return checker, CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def _spell_as_transformers_4(path: Path) -> None:
    tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(TEXT["max_position_embeddings"])[None]
    save_file(tensors, path, metadata={"format": "pt"})


def write_ddpm_root_layout(
    folder: str | Path, *, seed: int = 0, unet: dict[str, Any] | None = None, **save_options: Any
) -> Path:
    """A repository like google/ddpm-cat-256: index, configs and weights side by side, and an old scheduler config."""
    import diffusers

    folder = Path(folder)
    model = randomise(diffusers.UNet2DModel(**{**DDPM_UNET, **(unet or {})}), seed)
    model.save_pretrained(folder, **save_options)
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.1.1",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    for name, content in (("model_index.json", index), ("scheduler_config.json", DDPM_SCHEDULER)):
        (folder / name).write_text(json.dumps(content, indent=2))
    return folder
