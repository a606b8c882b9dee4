"""What one library writes the other reads, and the other way round."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch

import safelight

from ..helpers.compare import assert_same_pictures
from ..helpers.repositories import write_stable_diffusion

LIBRARIES = {"ours": safelight, "theirs": diffusers}
OPTIONS = {"plain": {}, "shards": {"max_shard_size": "60KB"}, "variant": {"variant": "fp16"}}


def _picture(pipeline, **request):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(3), **request).images


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("writer", "reader"), [("ours", "theirs"), ("theirs", "ours"), ("ours", "ours")])
def test_stable_diffusion(stable_diffusion, tmp_path, writer, reader, options):
    written = LIBRARIES[writer].DiffusionPipeline.from_pretrained(stable_diffusion)
    written.save_pretrained(tmp_path, **OPTIONS[options])
    variant = OPTIONS[options].get("variant")
    read = LIBRARIES[reader].DiffusionPipeline.from_pretrained(tmp_path, variant=variant)
    assert type(read).__name__ == "StableDiffusionPipeline"
    assert_same_pictures(_picture(read, prompt="a dog"), _picture(written, prompt="a dog"))


@pytest.mark.parametrize(("writer", "reader"), [("ours", "theirs"), ("theirs", "ours")])
def test_unconditional_from_the_root_layout(ddpm_root, tmp_path, writer, reader):
    written = LIBRARIES[writer].DDPMPipeline.from_pretrained(ddpm_root)
    written.save_pretrained(tmp_path)
    read = LIBRARIES[reader].DiffusionPipeline.from_pretrained(tmp_path)
    assert_same_pictures(_picture(read, batch_size=4), _picture(written, batch_size=4))


def test_index_and_repr_are_theirs(stable_diffusion, tmp_path):
    ours, theirs = (library.DiffusionPipeline.from_pretrained(stable_diffusion) for library in LIBRARIES.values())
    shown = [json.loads(repr(pipeline).split(" ", 1)[1]) for pipeline in (ours, theirs)]
    # transformers 5 without torchvision calls its image processor by another name.
    for one in shown:
        one["feature_extractor"] = "…"
    assert shown[0] == shown[1]
    for name in ("unet", "vae", "scheduler"):
        pair = [getattr(pipeline, name).config for pipeline in (ours, theirs)]
        assert {k: _plain(v) for k, v in pair[0].items()} == {k: _plain(v) for k, v in pair[1].items()}, name


def _plain(value):
    return sorted(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


def test_scheduler_swap_and_back_restores_the_config(stable_diffusion):
    seen = []
    for library in LIBRARIES.values():
        pndm = library.PNDMScheduler.from_pretrained(stable_diffusion, subfolder="scheduler")
        euler = library.EulerDiscreteScheduler.from_config(pndm.config, use_karras_sigmas=True)
        back = library.PNDMScheduler.from_config(euler.config)
        public = [{k: v for k, v in one.config.items() if not k.startswith("_")} for one in (pndm, euler, back)]
        assert public[1]["skip_prk_steps"] is True
        assert public[2].items() >= public[0].items()
        seen.append(public)
    assert seen[0] == seen[1]


def test_old_text_keys_and_components_of_transformers(tmp_path):
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = write_stable_diffusion(tmp_path, old_text_keys=True, safety_checker=False)
    plain = safelight.DiffusionPipeline.from_pretrained(folder)
    mixed = safelight.DiffusionPipeline.from_pretrained(
        folder,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
    )
    for request in ({"prompt": "a dog"}, {"prompt": "a dog", "clip_skip": 1}):
        assert_same_pictures(_picture(mixed, **request), _picture(plain, **request))
    mixed.save_pretrained(tmp_path / "mixed")
    assert_same_pictures(
        _picture(safelight.DiffusionPipeline.from_pretrained(tmp_path / "mixed"), prompt="a dog"),
        _picture(plain, prompt="a dog"),
    )
