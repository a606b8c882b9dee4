"""A request that was stopped, saved and resumed gives the picture that it would have given, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

import safelight
from safelight.errors import InputError, RepositoryError, UnsafeFileError

from ..helpers import repositories

# Name -> (class, config, arguments of the request).
SCHEDULERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {}, {"num_inference_steps": 5}),
    "pndm skip": ("PNDMScheduler", {"skip_prk_steps": True}, {}),
    "ddpm": ("DDPMScheduler", {}, {}),
    "ddim eta": ("DDIMScheduler", {}, {"eta": 0.6}),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    "ancestral": ("EulerAncestralDiscreteScheduler", {}, {}),
    "heun": ("HeunDiscreteScheduler", {}, {"num_inference_steps": 3}),
    "dpm": ("DPMSolverMultistepScheduler", {"solver_order": 3}, {"num_inference_steps": 6}),
    "dpm sde": ("DPMSolverSDEScheduler", {}, {"num_inference_steps": 3}),
    "dpm seeded": ("DPMSolverSDEScheduler", {"noise_sampler_seed": [3, 4]}, {"num_inference_steps": 3}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 3}, {"num_inference_steps": 6}),
    "sa": ("SASolverScheduler", {"predictor_order": 3}, {"num_inference_steps": 5}),
}
SAMPLERS = pytest.mark.parametrize("sampler", SCHEDULERS)

# In a fresh process: finish every run of a folder with a pipeline, and keep the pictures.
FRESH = """
import sys
from pathlib import Path
import numpy as np, torch
from safelight import DiffusionPipeline
torch.set_num_threads(int(sys.argv[3]))
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
for path in sorted(Path(sys.argv[2]).glob("*.run")):
    np.save(path.with_suffix(".npy"), pipe.finish(pipe.resume(path), output_type="np").images)
"""


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def latent(stable_diffusion):
    return _quiet(safelight.StableDiffusionPipeline.from_pretrained(stable_diffusion))


@pytest.fixture(scope="module")
def pixel():
    return _quiet(safelight.DiffusionPipeline.from_pretrained("fashion-mnist"))


@pytest.fixture
def pipe(request):
    return request.getfixturevalue(request.param)


BOTH = pytest.mark.parametrize("pipe", ["latent", "pixel"], indirect=True)


def _request(pipe: Any, sampler: str = "pndm skip") -> dict[str, Any]:
    """Two pictures, each with a generator of its own."""
    name, config, options = SCHEDULERS[sampler]
    asked: dict[str, Any] = {"num_inference_steps": 4, "seed": [11, 5], **options}
    asked["scheduler"] = getattr(safelight, name).from_config(pipe.scheduler.config, **config)
    if isinstance(pipe, safelight.StableDiffusionPipeline):
        return {**asked, "prompt": ["a dog", "a lamp"], "negative_prompt": ["grey", ""], "guidance_rescale": 0.2}
    return {**asked, "class_labels": ["Sneaker", "Bag"]}


def _stopped(pipe: Any, request: dict[str, Any], after: int) -> Any:
    run = pipe.prepare(**request)
    for _ in range(after):
        pipe.step(run)
    return run


def _pictures(pipe: Any, request: dict[str, Any]) -> np.ndarray:
    return pipe(**request, output_type="np").images


def _bytes(pipe: Any, path: Path) -> np.ndarray:
    return pipe.finish(pipe.resume(path), output_type="np").images


@SAMPLERS
@BOTH
def test_a_run_goes_on_from_every_step(pipe: Any, sampler: str, tmp_path: Path) -> None:
    request, path = _request(pipe, sampler), tmp_path / "half.run"
    expected = _pictures(pipe, request)
    run = pipe.prepare(**request)
    for index in range(len(run.plan) + 1):
        pipe.save_run(run, path)
        resumed = pipe.resume(path)
        assert (resumed.index, resumed.finished) == (index, index == len(run.plan))
        assert np.array_equal(pipe.finish(resumed, output_type="np").images, expected)
        pipe.step(run)
    assert np.array_equal(pipe.decode(run, "np").images, expected)


@BOTH
def test_a_run_that_is_saved_and_resumed_again_and_again(pipe: Any, tmp_path: Path) -> None:
    request = _request(pipe, "ddpm")
    run = pipe.prepare(**request)
    while not run.finished:
        pipe.step(run)
        pipe.save_run(run, tmp_path / "a.run")
        run = pipe.resume(tmp_path / "a.run")
    assert np.array_equal(pipe.decode(run, "np").images, _pictures(pipe, request))


@BOTH
def test_a_fresh_process_makes_the_same_pictures(pipe: Any, request: Any, tmp_path: Path) -> None:
    expected = {}
    for sampler in ("pndm", "pndm skip", "ddpm", "ancestral", "dpm sde", "unipc", "sa"):
        run, names = pipe.prepare(**_request(pipe, sampler)), []
        while True:
            names.append(f"{sampler}-{run.index:02}".replace(" ", "-"))
            pipe.save_run(run, tmp_path / f"{names[-1]}.run")
            if run.finished:
                break
            pipe.step(run)
        expected |= dict.fromkeys(names, pipe.decode(run, "np").images)
    if isinstance(pipe, safelight.StableDiffusionPipeline):
        source = str(request.getfixturevalue("stable_diffusion"))
    else:
        source = "fashion-mnist"
    arguments = [source, str(tmp_path), str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    found = {path.stem: np.load(path) for path in tmp_path.glob("*.npy")}
    assert found.keys() == expected.keys()
    assert len(found) > 40
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


def test_streams_stop_and_go_on(pixel, tmp_path):
    request = _request(pixel, "ddpm")
    whole = [event.latents for event in pixel.stream(**request)]
    for event in pixel.stream(**request):
        if event.index == 1:
            event.save(tmp_path / "run")
            break
    rest = list(pixel.stream(trajectory=pixel.resume(tmp_path / "run")))
    assert [event.index for event in rest] == list(range(2, len(whole)))
    assert all(torch.equal(event.latents, whole[event.index]) for event in rest)
    assert rest[-1].progress == 1
    with pytest.raises(InputError, match="request already"):
        pixel.stream("x", trajectory=rest[-1].trajectory)
    with pytest.raises(InputError, match="request already"):
        pixel.stream(trajectory=rest[-1].trajectory, seed=3)


def test_finish_is_the_rest_of_a_call(latent):
    request = _request(latent)
    seen: list[int] = []

    def callback(view: Any, index: int, timestep: Any, tensors: dict) -> dict:
        seen.append(index)
        return tensors

    run = _stopped(latent, request, 2)
    result = latent.finish(run, "np", callback_on_step_end=callback)
    assert seen == list(range(2, len(run.plan)))
    expected = latent(**request, output_type="np")
    assert np.array_equal(result.images, expected.images)
    assert type(result) is type(expected)
    again = latent.finish(run, "np", return_dict=False)
    assert isinstance(again, tuple)
    assert np.array_equal(again[0], expected.images)
    with pytest.raises(InputError, match="output_type"):
        latent.finish(run, "jpg")
    with pytest.raises(InputError, match="latent_s"):
        latent.finish(run, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["latent_s"])


def test_what_was_set_during_the_run_is_kept(latent, tmp_path):
    request = _request(latent)

    def steered(index: int, run: Any) -> None:
        if index == 1:
            run.guidance_scale = 3.0
            run.cross_attention_kwargs = {"scale": 0.5}

    run = latent.prepare(**request)
    for index in range(2):
        latent.step(run)
        steered(index, run)
    latent.save_run(run, tmp_path / "run")
    resumed = latent.resume(tmp_path / "run")
    assert resumed.guidance == run.guidance
    assert resumed.forward_options == {"cross_attention_kwargs": {"scale": 0.5}}
    assert resumed.settings == run.settings
    assert torch.equal(resumed.pred_original_sample, run.pred_original_sample)
    for one in (run, resumed):
        while not one.finished:
            latent.step(one)
    assert torch.equal(run.sample, resumed.sample)
    plain = _stopped(latent, request, len(run.plan))
    assert not torch.equal(plain.sample, run.sample)


def test_an_interrupted_run_can_go_on(pixel, tmp_path):
    request = _request(pixel, "euler")
    run = _stopped(pixel, request, 2)
    run.interrupt = True
    assert run.finished
    pixel.save_run(run, tmp_path / "run")
    assert np.array_equal(_bytes(pixel, tmp_path / "run"), _pictures(pixel, request))


def test_a_run_without_a_generator_goes_on_with_the_numbers_that_came_next(pixel, tmp_path):
    request = {**_request(pixel, "ddpm"), "seed": None}
    torch.manual_seed(8)
    expected = _pictures(pixel, request)
    torch.manual_seed(8)
    pixel.save_run(_stopped(pixel, request, 2), tmp_path / "run")
    torch.manual_seed(9)
    assert np.array_equal(_bytes(pixel, tmp_path / "run"), expected)
    pixel.save_run(_stopped(pixel, {**request, "scheduler": None}, 2), tmp_path / "run")
    assert pixel.resume(tmp_path / "run").generator is None  # as nothing is random in what is left


def test_one_generator_for_all_pictures(pixel, tmp_path):
    def request(generator: Any) -> dict[str, Any]:
        return {**_request(pixel, "ddpm"), "seed": None, "generator": generator}

    for make in (lambda one: one, lambda one: [one, one]):
        expected = _pictures(pixel, request(make(torch.Generator().manual_seed(4))))
        run = _stopped(pixel, request(make(torch.Generator().manual_seed(4))), 2)
        pixel.save_run(run, tmp_path / "run")
        assert np.array_equal(_bytes(pixel, tmp_path / "run"), expected)
        assert np.array_equal(pixel.finish(run, "np").images, expected)  # saving takes nothing from it


def test_resumed_and_other_runs_share_forwards(latent, tmp_path):
    request = _request(latent, "ddpm")
    pair = [_stopped(latent, request, 1), latent.prepare("a cat", num_inference_steps=3, seed=1)]
    latent.save_run(pair[0], tmp_path / "run")
    again = [latent.resume(tmp_path / "run"), latent.prepare("a cat", num_inference_steps=3, seed=1)]
    for runs in (pair, again):
        while not all(run.finished for run in runs):
            latent.step(runs)
    assert all(torch.equal(one.sample, other.sample) for one, other in zip(pair, again, strict=True))


def test_half_precision(stable_diffusion, tmp_path):
    half = _quiet(safelight.StableDiffusionPipeline.from_pretrained(stable_diffusion, dtype=torch.bfloat16))
    request = _request(half, "ddpm")
    half.save_run(_stopped(half, request, 2), tmp_path / "run")
    assert half.resume(tmp_path / "run").sample.dtype == torch.bfloat16
    assert np.array_equal(_bytes(half, tmp_path / "run"), _pictures(half, request))


# ---- what a file may be ----------------------------------------------------------------------------------------------


def test_the_file_is_safetensors_and_json(pixel, tmp_path):
    pixel.save_run(_stopped(pixel, _request(pixel, "ddpm"), 2), tmp_path / "deep" / "run")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]
    with safetensors.safe_open(tmp_path / "deep" / "run", "pt") as file:
        description = json.loads(file.metadata()["safelight.run"])
        assert "sample" in set(file.keys())
    assert description["run"]["index"] == 2
    assert description["scheduler"]["class"] == "DDPMScheduler"


def test_a_crash_while_saving_leaves_the_old_file(pixel, tmp_path, monkeypatch):
    request = _request(pixel, "ddpm")
    run = _stopped(pixel, request, 1)
    pixel.save_run(run, tmp_path / "run")
    pixel.step(run)

    def crash(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        pixel.save_run(run, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert pixel.resume(tmp_path / "run").index == 1


@pytest.fixture(scope="module")
def saved(pixel, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run"
    pixel.save_run(_stopped(pixel, _request(pixel, "ddpm"), 2), path)
    return path


def _described(saved: Path, target: Path, change: Any) -> Path:
    """A copy of the file with another description."""
    with safetensors.safe_open(saved, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["safelight.run"])
    text = change(description)
    text = json.dumps(description) if text is None else text
    safetensors.torch.save_file(tensors, target, {"safelight.run": text})
    return target


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_named(pixel, saved, tmp_path, share):
    path = tmp_path / "cut.run"
    path.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(RepositoryError, match=r"cut\.run.*truncated"):
        pixel.resume(path)


def test_foreign_files_are_named(pixel, tmp_path):
    with pytest.raises(RepositoryError, match=r"no file .*nothing"):
        pixel.resume(tmp_path / "nothing")
    with pytest.raises(RepositoryError, match="is a folder"):
        pixel.resume(tmp_path)
    with pytest.raises(RepositoryError, match="is a folder"):
        pixel.save_run(pixel.prepare(class_labels="Bag"), tmp_path)
    (tmp_path / "text").write_text("no run at all, but long enough for a header")
    with pytest.raises(RepositoryError, match="text' is not a safetensors file"):
        pixel.resume(tmp_path / "text")
    torch.save({"sample": torch.ones(3)}, tmp_path / "pickle")
    with pytest.raises(RepositoryError, match="pickle' is not a safetensors file"):
        pixel.resume(tmp_path / "pickle")
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"sample": torch.ones(3)}, tmp_path / "weights", metadata)
        with pytest.raises(RepositoryError, match="weights' holds tensors, but no run"):
            pixel.resume(tmp_path / "weights")


def _set(*keys: Any, to: Any) -> Any:
    def change(description: Any) -> None:
        for key in keys[:-1]:
            description = description[key]
        description[keys[-1]] = to

    return change


DAMAGED = {
    "no JSON": (lambda description: "{", RepositoryError, "is damaged"),
    "no object": (lambda description: "[1]", RepositoryError, "no format number"),
    "newer": (_set("format", to=9), RepositoryError, "format 9, newer than 1"),
    "no sample": (lambda description: description["run"].pop("sample") and None, RepositoryError, "damaged.*sample"),
    "a field too many": (_set("run", "colour", to=1), RepositoryError, "damaged.*colour"),
    "past the end": (_set("run", "index", to=99), RepositoryError, "damaged.*step 99 of 4"),
    "another tensor": (_set("run", "sample", to={"tensor": "none"}), RepositoryError, "damaged.*none"),
    "code": (_set("scheduler", "class", to="os.system"), UnsafeFileError, "os.system"),
    "no pipeline": (lambda description: description.pop("pipeline") and None, RepositoryError, "damaged.*pipeline"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(pixel, saved, tmp_path, case):
    change, error, words = DAMAGED[case]
    with pytest.raises(error, match=words) as raised:
        pixel.resume(_described(saved, tmp_path / "bad.run", change))
    assert "bad.run" in str(raised.value) or error is UnsafeFileError


# ---- which pipelines may go on ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latent_run(latent, tmp_path_factory):
    path = tmp_path_factory.mktemp("latent") / "run"
    latent.save_run(_stopped(latent, _request(latent), 2), path)
    return path


def test_another_pipeline_is_refused(latent, pixel, saved, latent_run):
    with pytest.raises(InputError, match="of a StableDiffusionPipeline, but this is a DDIMPipeline"):
        pixel.resume(latent_run)
    with pytest.raises(InputError, match="of a DDIMPipeline, but this is a StableDiffusionPipeline"):
        latent.resume(saved)


def test_other_components_are_refused(latent, stable_diffusion, latent_run, tmp_path):
    parts = latent.components
    make = safelight.StableDiffusionPipeline
    other = {**parts, "safety_checker": None}
    with pytest.raises(InputError, match=r"safety_checker has class None here, .* with StableDiffusionSafetyChecker"):
        make(**other, requires_safety_checker=False).resume(latent_run)
    half = make.from_pretrained(stable_diffusion, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="has dtype bfloat16 here, but the run was saved with float32"):
        half.resume(latent_run)
    wider = repositories.write_stable_diffusion(tmp_path / "wider", unet={"block_out_channels": (16, 48)})
    with pytest.raises(InputError, match=r"unet has block_out_channels=\[16, 48\] here, .* with \[16, 32\]"):
        make.from_pretrained(wider).resume(latent_run)


def test_the_same_components_may_have_moved(latent, stable_diffusion, latent_run, tmp_path):
    latent.save_pretrained(tmp_path / "copy")
    copied = _quiet(safelight.DiffusionPipeline.from_pretrained(tmp_path / "copy"))
    copied.scheduler = safelight.EulerDiscreteScheduler()  # the run has its own
    assert np.array_equal(_bytes(copied, latent_run), _bytes(latent, latent_run))
    copied.unet = torch.compile(copied.unet)
    assert copied.resume(latent_run).scheduler.config == latent.resume(latent_run).scheduler.config


# ---- which runs can be saved -----------------------------------------------------------------------------------------


def test_what_cannot_be_saved_is_named(latent, tmp_path):
    run = _stopped(latent, _request(latent), 1)
    run.cross_attention_kwargs = {"processor": object()}
    with pytest.raises(InputError, match=r"forward_options\.cross_attention_kwargs\.processor is of type object"):
        latent.save_run(run, tmp_path / "run")
    theirs = diffusers.DDIMScheduler.from_config(dict(latent.scheduler.config))
    with pytest.raises(InputError, match="FamiliarScheduler is not one of Safelight's schedulers"):
        latent.save_run(latent.prepare("a dog", num_inference_steps=2, scheduler=theirs), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensors_in_options_are_saved(latent, tmp_path):
    run = latent.prepare("a dog", num_inference_steps=2)
    run.forward_options = {"cross_attention_kwargs": {"masks": [torch.eye(3)], "names": ("a",)}}
    latent.save_run(run, tmp_path / "run")
    found = latent.resume(tmp_path / "run").forward_options["cross_attention_kwargs"]
    assert found["names"] == ("a",)
    assert torch.equal(found["masks"][0], torch.eye(3))


def test_guidance_of_a_scripts_own_is_refused(latent, tmp_path):
    class Own(type(latent.prepare("a dog").guidance)):  # type: ignore[misc]
        pass

    run = latent.prepare("a dog")
    run.guidance = Own()
    with pytest.raises(InputError, match="guidance is a Own"):
        latent.save_run(run, tmp_path / "run")
    run.guidance = replace(latent.prepare("a dog").guidance, scale=2.0)
    latent.save_run(run, tmp_path / "run")
