"""What users get wrong: every case ends in an error of our hierarchy that names the culprit and says what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import safelight
from safelight import (
    AutoencoderKL,
    ConfigError,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FrozenConfigError,
    InputError,
    NonFiniteError,
    PNDMScheduler,
    RepositoryError,
    SafelightError,
    StableDiffusionPipeline,
    UNet2DModel,
    UnknownArgumentError,
    UnsafeFileError,
    WeightsError,
)

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def _edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_weights(folder: Path, change: Callable[[dict], None], name: str = WEIGHTS) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def _truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def _absurd_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def _only_pickles(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "unet/diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


# name -> (what is done to a good repository, the error, what its message must say)
BROKEN_REPOSITORIES: dict[str, tuple[Callable[[Path], Any], type[SafelightError], list[str]]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), RepositoryError, ["model_index.json"]),
    "index is not JSON": (lambda f: (f / "model_index.json").write_text("{"), RepositoryError, ["JSON", "model_index"]),
    "index is a list": (
        lambda f: (f / "model_index.json").write_text("[]"),
        RepositoryError,
        ["object", "model_index"],
    ),
    "unknown pipeline class": (
        lambda f: _edit_json(f / "model_index.json", _class_name="StableDiffusionPipelin"),
        UnsafeFileError,
        ["StableDiffusionPipelin", "StableDiffusionPipeline"],
    ),
    "unknown component class": (
        lambda f: _edit_json(f / "model_index.json", unet=["diffusers", "UNet2DConditionalModel"]),
        UnsafeFileError,
        ["UNet2DConditionalModel", "UNet2DConditionModel"],
    ),
    "component from an unknown library": (
        lambda f: _edit_json(f / "model_index.json", unet=["os", "system"]),
        UnsafeFileError,
        ["os", "unet"],
    ),
    "component folder missing": (lambda f: shutil.rmtree(f / "vae"), RepositoryError, ["vae"]),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), RepositoryError, ["unet", "safetensors"]),
    "weights truncated": (_truncate, WeightsError, ["diffusion_pytorch_model.safetensors", "truncated"]),
    "weights header absurd": (_absurd_header, WeightsError, ["diffusion_pytorch_model.safetensors"]),
    "weights are not safetensors": (
        lambda f: (f / WEIGHTS).write_bytes(b"PK\x03\x04 not a tensor in sight"),
        WeightsError,
        ["diffusion_pytorch_model.safetensors"],
    ),
    "a key is missing": (
        lambda f: _edit_weights(f, lambda t: t.pop("conv_in.weight")),
        WeightsError,
        ["conv_in.weight", "missing"],
    ),
    "a key is unexpected": (
        lambda f: _edit_weights(f, lambda t: t.update(surprise=torch.zeros(1))),
        WeightsError,
        ["surprise", "unexpected"],
    ),
    "a tensor has another shape": (
        lambda f: _edit_weights(f, lambda t: t.update({"conv_in.weight": torch.zeros(3, 3)})),
        WeightsError,
        ["conv_in.weight", "(3, 3)"],
    ),
    "only a pickle": (_only_pickles, UnsafeFileError, ["diffusion_pytorch_model.bin", "use_safetensors=False"]),
    "config value of a wrong kind": (
        lambda f: _edit_json(f / "unet/config.json", down_block_types=["CrossAttnDownBlock2D", "DownBlok2D"]),
        ConfigError,
        ["DownBlok2D", "DownBlock2D"],
    ),
    "scheduler with an unknown schedule": (
        lambda f: _edit_json(f / "scheduler/scheduler_config.json", beta_schedule="scaled_linaer"),
        ConfigError,
        ["scaled_linaer", "scaled_linear"],
    ),
}


@pytest.mark.parametrize("name", BROKEN_REPOSITORIES)
def test_broken_repository(stable_diffusion, tmp_path, name):
    breaks, error, words = BROKEN_REPOSITORIES[name]
    folder = shutil.copytree(stable_diffusion, tmp_path / "repository")
    breaks(folder)
    with pytest.raises(error) as caught:
        DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for word in words:
        assert word in str(caught.value)


def test_nan_weights_stop_at_the_first_forward(stable_diffusion, tmp_path):
    folder = shutil.copytree(stable_diffusion, tmp_path / "repository")
    _edit_weights(folder, lambda t: t["conv_in.weight"].fill_(float("nan")))
    pipe = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    with pytest.raises(NonFiniteError, match=r"UNet2DConditionModel.*step 1 of"):
        pipe("a dog", num_inference_steps=3)
    _edit_weights(
        shutil.copytree(stable_diffusion, tmp_path / "other"),
        lambda t: t["decoder.conv_in.weight"].fill_(float("inf")),
        "vae/diffusion_pytorch_model.safetensors",
    )
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "other", safety_checker=None)
    with pytest.raises(NonFiniteError, match=r"AutoencoderKL.*float32"):
        pipe("a dog", num_inference_steps=1)


@pytest.fixture(scope="module")
def pipe(stable_diffusion):
    return StableDiffusionPipeline.from_pretrained(stable_diffusion, safety_checker=None)


# name -> (keyword arguments of a call, what the message must say)
BAD_REQUESTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no prompt": ({"prompt": None}, ["prompt"]),
    "prompt is a number": ({"prompt": 5}, ["prompt", "int", "string"]),
    "prompt is a list of numbers": ({"prompt": ["a", 5]}, ["prompt", "int"]),
    "prompt list is empty": ({"prompt": []}, ["prompt", "empty"]),
    "prompt and embeds": ({"prompt_embeds": torch.zeros(1, 77, 32)}, ["prompt", "prompt_embeds"]),
    "embeds of two dimensions": ({"prompt": None, "prompt_embeds": torch.zeros(77, 32)}, ["prompt_embeds", "(77, 32)"]),
    "more negatives than prompts": ({"negative_prompt": ["a", "b", "c"]}, ["negative_prompt", "3"]),
    "height not divisible": ({"height": 65}, ["height", "65", "64"]),
    "width is zero": ({"width": 0}, ["width", "0"]),
    "height is a float": ({"height": 64.5}, ["height", "64.5"]),
    "negative steps": ({"num_inference_steps": -1}, ["num_inference_steps", "-1"]),
    "no steps": ({"num_inference_steps": 0}, ["num_inference_steps", "0"]),
    "more steps than the model has": ({"num_inference_steps": 5000}, ["5000", "1000"]),
    "no images": ({"num_images_per_prompt": 0}, ["num_images_per_prompt", "0"]),
    "guidance is a word": ({"guidance_scale": "high"}, ["guidance_scale", "high"]),
    "guidance is NaN": ({"guidance_scale": float("nan")}, ["guidance_scale", "nan"]),
    "seed and generator": ({"seed": 1, "generator": torch.Generator()}, ["seed", "generator"]),
    "too few generators": ({"generator": [torch.Generator()], "num_images_per_prompt": 2}, ["generator", "1", "2"]),
    "too few seeds": ({"seed": [1], "num_images_per_prompt": 2}, ["seed", "1", "2"]),
    "generator is a number": ({"generator": 42}, ["generator", "42"]),
    "latents of another shape": ({"latents": torch.zeros(1, 4, 9, 9)}, ["latents", "(1, 4, 8, 8)", "(1, 4, 9, 9)"]),
    "latents with NaN": ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, ["latents", "NaN"]),
    "timesteps and sigmas": ({"timesteps": [9, 5], "sigmas": [3.0, 1.0]}, ["timesteps", "sigmas"]),
    "sigmas for a scheduler without": ({"sigmas": [3.0, 1.0]}, ["PNDMScheduler", "sigmas"]),
    "unknown output type": ({"output_type": "jpg"}, ["output_type", "jpg", "pil"]),
    "unknown argument": ({"guidence_scale": 5}, ["guidence_scale", "guidance_scale"]),
    "unknown callback tensor": (
        {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latent"]},
        ["latent", "latents"],
    ),
    "too many layers skipped": ({"clip_skip": 40}, ["clip_skip", "40", "2"]),
    "scheduler is a name": ({"scheduler": "euler"}, ["scheduler", "str"]),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request(pipe, name):
    request, words = BAD_REQUESTS[name]
    with pytest.raises((InputError, UnknownArgumentError)) as caught:
        pipe(**{"prompt": "a dog", "num_inference_steps": 2, **request})
    for word in words:
        assert word in str(caught.value)


def _ddpm() -> DDPMScheduler:
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(2)
    return scheduler


NOISE = torch.zeros(1, 3, 4, 4)
UNET = {"sample_size": 4, "block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
PLAIN = {**UNET, "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}

# name -> (what is called, the error, what its message must say)
BAD_CALLS: dict[str, tuple[Callable[[], Any], type[SafelightError], list[str]]] = {
    "path that does not exist": (
        lambda: DiffusionPipeline.from_pretrained("./no/such/folder"),
        RepositoryError,
        ["no/such/folder"],
    ),
    "scheduler from a missing path": (
        lambda: DDPMScheduler.from_pretrained("./no/such/folder"),
        RepositoryError,
        ["no/such/folder"],
    ),
    "unknown constructor argument": (
        lambda: UNet2DModel(sample_sise=4),
        UnknownArgumentError,
        ["sample_sise", "sample_size"],
    ),
    "unknown from_config argument": (
        lambda: EulerDiscreteScheduler.from_config(PNDMScheduler().config, use_karas_sigmas=True),
        UnknownArgumentError,
        ["use_karas_sigmas", "use_karras_sigmas"],
    ),
    "from_config of a path": (lambda: DDIMScheduler.from_config("here"), ConfigError, ["from_pretrained", "here"]),
    "config item assigned": (
        lambda: DDIMScheduler().config.__setitem__("beta_end", 1),
        FrozenConfigError,
        ["beta_end", "from_config"],
    ),
    "config attribute assigned": (
        lambda: setattr(DDIMScheduler().config, "beta_end", 1),
        FrozenConfigError,
        ["beta_end", "from_config"],
    ),
    "unknown block type": (
        lambda: UNet2DModel(**{**UNET, "down_block_types": ("DwonBlock2D",), "up_block_types": ("UpBlock2D",)}),
        ConfigError,
        ["DwonBlock2D", "DownBlock2D"],
    ),
    "blocks and channels that do not match": (
        lambda: UNet2DModel(**{**PLAIN, "block_out_channels": (8, 16)}),
        ConfigError,
        ["block_out_channels", "down_block_types"],
    ),
    "unknown prediction type": (
        lambda: DDIMScheduler(prediction_type="noise"),
        ConfigError,
        ["noise", "epsilon"],
    ),
    "step beyond the end": (
        lambda: [s := _ddpm(), s.step(NOISE, 5000, NOISE)],
        InputError,
        ["5000"],
    ),
    "unknown step option": (
        lambda: [s := _ddpm(), s.step(NOISE, s.timesteps[0], NOISE, etaa=1)],
        UnknownArgumentError,
        ["etaa"],
    ),
    "ascending timesteps": (
        lambda: DDPMScheduler().set_timesteps(timesteps=[1, 5, 9]),
        InputError,
        ["timesteps", "smaller than"],
    ),
    "model input with the wrong number of channels": (
        lambda: UNet2DModel(**PLAIN)(torch.zeros(1, 5, 4, 4), 1),
        InputError,
        ["5", "3"],
    ),
    "model input that is not a picture": (
        lambda: UNet2DModel(**PLAIN)(torch.zeros(3, 4, 4), 1),
        InputError,
        ["(3, 4, 4)"],
    ),
    "labels for an unconditional model": (
        lambda: DDPMPipeline(UNet2DModel(**PLAIN), DDPMScheduler())(class_labels=[1], num_inference_steps=1),
        InputError,
        ["class_labels", "not class-conditional"],
    ),
    "no labels for a class-conditional model": (
        lambda: DDPMPipeline(UNet2DModel(**PLAIN, num_class_embeds=3), DDPMScheduler())(num_inference_steps=1),
        InputError,
        ["class_labels"],
    ),
    "a label that the model does not have": (
        lambda: DDPMPipeline(UNet2DModel(**PLAIN, num_class_embeds=2), DDPMScheduler(), {"0": "cat", "1": "dog"})(
            class_labels=["cta"], num_inference_steps=1
        ),
        InputError,
        ["cta", "cat"],
    ),
    "batch of zero": (
        lambda: DDPMPipeline(UNet2DModel(**PLAIN), DDPMScheduler())(batch_size=0),
        InputError,
        ["batch_size", "0"],
    ),
    "VAE input with the wrong number of channels": (
        lambda: AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)).encode(torch.zeros(1, 4, 16, 16)),
        InputError,
        ["4", "3"],
    ),
    "unknown from_pretrained option": (
        lambda: UNet2DModel.from_pretrained("somewhere/model", varient="fp16"),
        UnknownArgumentError,
        ["varient", "variant"],
    ),
    "model saved over a file": (
        lambda: UNet2DModel(**PLAIN).save_pretrained(__file__),
        RepositoryError,
        ["test_bad_inputs.py"],
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(name):
    call, error, words = BAD_CALLS[name]
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_every_error_is_of_one_hierarchy_and_of_a_familiar_builtin():
    errors = [getattr(safelight, name) for name in dir(safelight) if name.endswith("Error")]
    assert len(errors) >= 10
    for error in errors:
        assert issubclass(error, SafelightError)
        assert error is SafelightError or len(error.__mro__) > 4, f"{error.__name__} has no built-in beside the root"
