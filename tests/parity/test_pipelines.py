"""Whole pipelines against diffusers: the same files, the same generator, the same pictures."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch

import safelight

from ..helpers.compare import assert_same_pictures
from ..helpers.repositories import ALWAYS_FLAGGED, write_stable_diffusion

LONG = "a very detailed oil painting of a lighthouse on a cliff above a stormy sea, " * 8
REQUESTS = {
    "plain": {"prompt": "a photo of a cat"},
    "two prompts": {"prompt": ["a photo of a cat", "a red cube 🍎"]},
    "negative": {"prompt": "a dog", "negative_prompt": "blurry, ugly"},
    "several images": {"prompt": ["우주를 나는 고양이", "a dog"], "num_images_per_prompt": 2},
    "no guidance": {"prompt": "a dog", "guidance_scale": 1.0},
    "rescale": {"prompt": "a dog", "guidance_rescale": 0.7},
    "clip skip": {"prompt": "a dog", "clip_skip": 1},
    "long prompt": {"prompt": LONG},
    "other size": {"prompt": "a dog", "height": 48, "width": 88},
    "list of generators": {"prompt": "a dog", "num_images_per_prompt": 2, "generator": [3, 4]},
}
SCHEDULERS = {
    "PNDMScheduler": {},
    "DDIMScheduler": {"eta": 0.7},
    "EulerDiscreteScheduler": {},
    "DDPMScheduler": {},
}


def _generators(seeds: int | list[int]):
    if isinstance(seeds, list):
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.Generator().manual_seed(seeds)


def _pictures(pipeline, request: dict, steps: int = 4) -> list:
    request = {**request, "generator": _generators(request.get("generator", 7))}
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_inference_steps=steps, **request).images


@pytest.fixture(scope="module")
def pair(stable_diffusion):
    ours, theirs = (
        library.StableDiffusionPipeline.from_pretrained(stable_diffusion, safety_checker=None)
        for library in (safelight, diffusers)
    )
    # diffusers' clip_skip looks for an attribute that transformers 5 no longer has.
    vars(theirs.text_encoder).setdefault("text_model", theirs.text_encoder)
    return ours, theirs


def _with_scheduler(pair, name: str):
    """Our pipeline, a copy of theirs with another scheduler, and that scheduler for a call of ours."""
    ours, theirs = pair
    other = copy.copy(theirs)
    other.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config)
    return ours, other, getattr(safelight, name).from_config(ours.scheduler.config)


@pytest.mark.parametrize("name", REQUESTS)
def test_stable_diffusion_request(pair, name):
    ours, theirs = (_pictures(pipeline, REQUESTS[name]) for pipeline in pair)
    assert_same_pictures(ours, theirs)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_stable_diffusion_scheduler(pair, name):
    ours, other, swapped = _with_scheduler(pair, name)
    request = {"prompt": "a dog", **SCHEDULERS[name]}
    assert_same_pictures(_pictures(ours, {**request, "scheduler": swapped}), _pictures(other, request))


def test_custom_timesteps_and_sigmas(pair):
    ours, other, swapped = _with_scheduler(pair, "EulerDiscreteScheduler")
    for grid in ({"timesteps": [900, 600, 300, 50]}, {"sigmas": [10.0, 4.0, 1.0, 0.2]}):
        request = {"prompt": "a dog", **grid}
        assert_same_pictures(_pictures(ours, {**request, "scheduler": swapped}), _pictures(other, request))


def test_prompt_embeds_and_latents(pair):
    generator = torch.Generator().manual_seed(0)
    request = {
        "prompt_embeds": torch.randn(1, 77, 32, generator=generator),
        "negative_prompt_embeds": torch.randn(1, 77, 32, generator=generator),
        "latents": torch.randn(1, 4, 8, 8, generator=generator),
    }
    ours, theirs = (_pictures(pipeline, request) for pipeline in pair)
    assert_same_pictures(ours, theirs)


def test_latent_output_and_callback_that_edits(pair):
    def cut_guidance(pipe, index, timestep, tensors):
        if index == int(pipe.num_timesteps * 0.5):
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        tensors["latents"] = tensors["latents"] * 1.01
        return tensors

    request = {
        "prompt": "a dog",
        "output_type": "latent",
        "callback_on_step_end": cut_guidance,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    ours, theirs = (_pictures(pipeline, request) for pipeline in pair)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_guidance_embedding_network(tmp_path):
    folder = write_stable_diffusion(tmp_path, unet={"time_cond_proj_dim": 16}, safety_checker=False)
    ours, theirs = (
        _pictures(library.DiffusionPipeline.from_pretrained(folder), {"prompt": "a dog", "guidance_scale": 8.0})
        for library in (safelight, diffusers)
    )
    assert_same_pictures(ours, theirs)


@pytest.mark.parametrize("flagged", [False, True])
def test_safety_checker(stable_diffusion, tmp_path, flagged):
    folder = write_stable_diffusion(tmp_path, safety_threshold=ALWAYS_FLAGGED) if flagged else stable_diffusion
    results = []
    for library in (safelight, diffusers):
        pipeline = library.DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        results.append(pipeline("a dog", num_inference_steps=2, generator=_generators(1), output_type="np"))
    ours, theirs = results
    assert ours.nsfw_content_detected == theirs.nsfw_content_detected == [flagged]
    assert abs(ours.images - theirs.images).max() <= 1e-4
    assert (ours.images.max() == 0) == flagged


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
def test_unconditional(ddpm_root, kind):
    for request in ({"batch_size": 4}, {"batch_size": 8, **({"eta": 0.5} if kind == "DDIMPipeline" else {})}):
        ours, theirs = (
            _pictures(getattr(library, kind).from_pretrained(ddpm_root), request, steps=6)
            for library in (safelight, diffusers)
        )
        assert_same_pictures(ours, theirs)
