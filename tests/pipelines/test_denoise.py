"""The protocol of a run: prepare, step, decode; callbacks, streams, threads."""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch

import safelight
from safelight.pipelines.film import Film

from ..helpers.compare import assert_same_pictures


@pytest.fixture(scope="module")
def pipe(stable_diffusion):
    pipeline = safelight.StableDiffusionPipeline.from_pretrained(stable_diffusion, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _pixels(pipe, **request) -> np.ndarray:
    return pipe(**{"prompt": "a dog", "num_inference_steps": 3, "output_type": "np", "seed": 5, **request}).images


def test_prepare_step_decode_is_the_call(pipe):
    run = pipe.prepare("a dog", num_inference_steps=3, seed=5)
    while not run.finished:
        pipe.step(run)
    assert np.array_equal(pipe.decode(run, "np").images, _pixels(pipe))


def test_stream_yields_every_step_and_ends_in_the_picture(pipe):
    events = list(pipe.stream("a dog", num_inference_steps=3, seed=5))
    plan = events[0].trajectory.plan
    assert [event.index for event in events] == list(range(len(plan)))
    assert [float(event.timestep) for event in events] == plan.timesteps.tolist()
    assert np.array_equal(events[-1].decode("np").images, _pixels(pipe))
    assert events[-1].progress == 1
    assert events[0].preview[0].size == (64, 64)
    assert not torch.equal(events[0].latents, events[1].latents)


def test_seed_gives_each_image_its_own_noise(pipe):
    several = _pixels(pipe, num_images_per_prompt=3)
    alone = [_pixels(pipe, seed=seed) for seed in (5, 6, 7)]
    assert np.abs(several - np.concatenate(alone)).max() < 1e-4
    assert np.abs(_pixels(pipe, prompt=["a dog"] * 2, seed=[7, 5]) - np.concatenate([alone[2], alone[0]])).max() < 1e-4
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_runs_of_different_lengths_and_schedulers_share_one_forward(pipe):
    euler = safelight.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    requests = [{"num_inference_steps": 2}, {"num_inference_steps": 4, "scheduler": euler}, {"guidance_scale": 1.0}]
    runs = [pipe.prepare(**{"prompt": "a dog", "num_inference_steps": 3, "seed": 5, **request}) for request in requests]
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    try:
        while not all(run.finished for run in runs):
            pipe.step(runs)
    finally:
        hook.remove()
    assert calls[0] == 2 + 2 + 1
    assert len(calls) == max(len(run.plan) for run in runs)
    for run, request in zip(runs, requests, strict=True):
        assert np.abs(pipe.decode(run, "np").images - _pixels(pipe, **request)).max() < 1e-4


def test_eight_threads_each_get_the_picture_they_would_get_alone(pipe):
    config = pipe.scheduler.config
    schedulers = [
        safelight.EulerDiscreteScheduler.from_config(config),
        safelight.DDIMScheduler.from_config(config),
        safelight.DDPMScheduler.from_config(config),
        None,
    ]
    requests = [
        {"scheduler": schedulers[k % 4], "num_inference_steps": 3 + k, "seed": k, "eta": 0.3 if k % 4 == 1 else 0.0}
        for k in range(8)
    ]
    alone = [_pixels(pipe, **request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: _pixels(pipe, **request), requests * 2))
    for k, picture in enumerate(together):
        assert np.array_equal(picture, alone[k % 8])


def test_a_call_leaves_the_pipeline_as_it_was(pipe):
    def state(thing) -> dict:
        return {
            key: copy.deepcopy(value) for key, value in vars(thing).items() if key not in ("_modules", "_parameters")
        }

    parts = [pipe, pipe.scheduler, pipe.unet, pipe.vae, pipe.text_encoder]
    before = [str(sorted(state(part).items(), key=lambda item: item[0])) for part in parts]
    pipe("a dog", num_inference_steps=2, callback_on_step_end=lambda p, i, t, k: setattr(p, "note", i) or k)
    assert [str(sorted(state(part).items(), key=lambda item: item[0])) for part in parts] == before


def test_callback_sees_the_run_and_can_stop_it(pipe):
    seen = []

    def callback(view, index, timestep, tensors):
        assert isinstance(view, safelight.StableDiffusionPipeline)
        seen.append((index, view.guidance_scale, view.num_timesteps, view.do_classifier_free_guidance, view.unet))
        assert tensors["prompt_embeds"].shape[0] == 2
        assert tensors["negative_prompt_embeds"].shape[0] == 1
        assert len(view.scheduler.timesteps) == view.num_timesteps
        view._interrupt = index == 1
        return tensors

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    image = pipe(
        "a dog",
        num_inference_steps=5,
        guidance_scale=4.0,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
    )
    assert len(seen) == 2
    assert seen[0][1:4] == (4.0, 6, True)
    assert seen[0][4] is pipe.unet
    assert image.images[0].size == (64, 64)
    assert not hasattr(pipe, "_interrupt")


def test_signature_shows_the_requests_arguments(pipe):
    names = list(inspect.signature(pipe.__call__).parameters)
    assert names[:3] == ["prompt", "height", "width"]
    assert {"seed", "scheduler", "output_type", "callback_on_step_end"} <= set(names)
    assert pipe("a dog", 64, 72, 2).images[0].size == (72, 64)


def test_return_tuple(pipe):
    images, flags = pipe("a dog", num_inference_steps=2, return_dict=False)
    assert len(images) == 1
    assert flags is None


def test_film_strip_and_gif(pipe, tmp_path):
    film = pipe.film("a dog", frames=3, num_inference_steps=5, seed=5)
    assert isinstance(film, Film)
    assert film.labels[0] == "noise"
    assert len(film.frames) == 4
    assert_same_pictures(film.images, pipe("a dog", num_inference_steps=5, seed=5).images)
    assert film.save(tmp_path / "way.gif").stat().st_size > 500
    assert film.save(tmp_path / "way.png").stat().st_size > 500
    with pytest.raises(safelight.InputError, match=r"\.gif or \.png"):
        film.save(tmp_path / "way.jpg")


def test_schedulers_with_the_familiar_surface_alone_work_too(pipe):
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(dict(pipe.scheduler.config))
    first = _pixels(pipe, scheduler=theirs, num_inference_steps=4)
    assert np.array_equal(first, _pixels(pipe, scheduler=theirs, num_inference_steps=4))
    assert theirs.num_inference_steps is None, "the shared object must not be touched"

    class Halved(safelight.EulerDiscreteScheduler):
        def step(self, model_output, timestep, sample, **options):
            return super().step(model_output * 0.5, timestep, sample, **options)

    euler = safelight.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    halved = Halved.from_config(pipe.scheduler.config)
    assert np.abs(_pixels(pipe, scheduler=halved) - _pixels(pipe, scheduler=euler)).max() > 0.001
