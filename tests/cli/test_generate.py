"""`safelight generate`: pictures, their settings, and the same pictures again."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import safelight
from safelight import images
from safelight.cli import generate
from safelight.cli import main as cli

STEPS = ["--steps", "3", "--seed", "5"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory) -> str:
    """A small class-conditional pipeline with a class for "none"."""
    torch.manual_seed(0)
    unet = safelight.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=4,
    )  # fmt: skip
    names = {"0": "T-shirt/top", "1": "Coat", "2": "Ankle boot"}
    pipeline = safelight.DDIMPipeline(unet, safelight.DDIMScheduler(), id2label=names)
    folder = tmp_path_factory.mktemp("classes") / "clothes"
    pipeline.save_pretrained(folder)
    return str(folder)


def run(capsys, *words: object) -> list[Path]:
    """The paths that the command prints."""
    status = cli.main(["generate", *map(str, words)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return [Path(line) for line in captured.out.splitlines()]


def refused(capsys, *words: object) -> str:
    """What the command says when it fails."""
    assert cli.main(["generate", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("safelight: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def test_it_is_the_pipelines_picture(capsys, stable_diffusion):
    asked = [
        "--negative",
        "ugly",
        "--guidance-scale",
        "3",
        "--height",
        "48",
        "--dtype",
        "float32",
        "--no-safety-checker",
    ]
    path, second = run(capsys, "a dog", "--model", stable_diffusion, *asked, *STEPS, "--count", 2)
    assert (path.as_posix(), second.as_posix()) == ("outputs/a-dog-5.png", "outputs/a-dog-6.png")
    pipeline = safelight.StableDiffusionPipeline.from_pretrained(stable_diffusion, safety_checker=None)
    request = {"negative_prompt": "ugly", "guidance_scale": 3.0, "height": 48, "num_inference_steps": 3}
    for seed, one in ((5, path), (6, second)):
        expected = pipeline(["a dog"], seed=seed, **request).images[0]
        assert np.array_equal(pixels(one), np.asarray(expected))
        assert pixels(one).std() > 1


def test_a_picture_can_be_made_again(capsys, stable_diffusion):
    first, other = run(capsys, "a dog", "우주를 나는 고양이", "-m", stable_diffusion, *STEPS, "--scheduler", "euler")
    for picture in (first, other):
        (again,) = run(capsys, "--from", picture, "-o", "again.png")
        assert again.read_bytes() == picture.read_bytes(), "pixels and settings"
    (same,) = run(capsys, "--from", first)
    assert same == first, "the same picture keeps its name"
    (changed,) = run(capsys, "--from", first, "--steps", "4")
    assert changed.name == "a-dog-5-2.png"
    assert not np.array_equal(pixels(changed), pixels(first))
    assert images.read_settings(changed) == {**images.read_settings(first), "steps": 4}
    (prompted,) = run(capsys, "a cat", "--from", first, "-o", "cat.png")
    assert images.read_settings(prompted)["prompt"] == "a cat"


def test_settings_hold_the_defaults(capsys, stable_diffusion):
    (path,) = run(capsys, "a dog", "-m", stable_diffusion, "--steps", "2", "--scheduler", "EulerDiscreteScheduler")
    settings = images.read_settings(path)
    assert settings["model"] == str(stable_diffusion.resolve())
    assert 0 <= settings["seed"] < 2**32, "one was drawn"
    assert (settings["scheduler"], settings["guidance_scale"], settings["height"]) == (
        "EulerDiscreteScheduler",
        7.5,
        64,
    )
    assert settings["made_with"]["threads"] == torch.get_num_threads()
    (own,) = run(capsys, "a dog", "-m", stable_diffusion, "--steps", "2")
    assert images.read_settings(own)["scheduler"] == "PNDMScheduler"


def test_film_strip_and_gif(capsys, stable_diffusion):
    words = ["a dog", "a cat", "-m", stable_diffusion, *STEPS, "--scheduler", "ddim"]
    dog, cat, strip, gif = run(capsys, *words, "--film-strip", "--gif", "--frames", 3, "-o", "way.png")
    assert [path.name for path in (dog, cat, strip, gif)] == ["way-1.png", "way-2.png", "way-film.png", "way-film.gif"]
    plain = run(capsys, *words, "-o", "plain.png")
    assert [np.array_equal(pixels(a), pixels(b)) for a, b in zip((dog, cat), plain, strict=True)] == [True, True]
    with Image.open(gif) as animation:
        assert animation.n_frames == 4
        assert animation.size == (128, 64)
    last = pixels(strip)[4:68, -4 - 128 : -4]
    assert np.array_equal(last, np.concatenate([pixels(dog), pixels(cat)], axis=1))


def test_classes_by_name_and_number(capsys, by_class):
    coat, boot, shirt = run(capsys, "COAT, ankle boot", "0", "-m", by_class, *STEPS)
    assert [path.name for path in (coat, boot, shirt)] == ["coat-5.png", "ankle-boot-6.png", "0-7.png"]
    everything = run(capsys, "-m", by_class, *STEPS, "-o", "all")
    assert [path.name for path in everything] == ["t-shirt-top-5.png", "coat-6.png", "ankle-boot-7.png"]
    pipeline = safelight.DDIMPipeline.from_pretrained(by_class, dtype="auto")
    expected = pipeline(class_labels=["Coat"], seed=5, num_inference_steps=3).images[0]
    assert np.array_equal(pixels(coat), np.asarray(expected))
    capsys.readouterr()
    assert "did you mean 'Ankle boot'" in refused(capsys, "coat", "ankel boot", "-m", by_class)
    (again,) = run(capsys, "--from", boot, "--guidance-scale", "2")
    assert images.read_settings(again)["prompt"] == "ankle boot"


def test_no_prompt_where_there_are_no_classes(capsys, ddpm_root):
    first, second = run(capsys, "-m", ddpm_root, *STEPS, "-n", 2)
    assert [first.name, second.name] == [f"{ddpm_root.name}-5.png", f"{ddpm_root.name}-6.png"]
    assert "takes no prompt, but 'cat'" in refused(capsys, "cat", "-m", ddpm_root)
    said = refused(capsys, "-m", ddpm_root, "--negative", "ugly", "--steps", 2)
    assert "does not take --negative; it takes --steps" in said


def test_the_bundled_model_is_the_default(capsys):
    (path,) = run(capsys, "sneaker", "--steps", "2", "--seed", "7")
    assert path.name == "sneaker-7.png"
    assert images.read_settings(path)["model"] == "fashion-mnist"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "no-such"], "no bundled model"),
        (["--model", "./nowhere"], "nowhere"),
        (["--count", "0"], "count is 0"),
        (["--device", "gpu"], "device is 'gpu', which is not here; usable: cpu"),
        (["--dtype", "float31"], "did you mean 'float32'"),
        (["--scheduler", "eulr"], "did you mean 'euler'"),
        (["--steps", "-3"], "num_inference_steps is -3"),
        (["--seed", "-1"], "seed is -1"),
        (["--output", "cat.jpg"], ".png"),
        (["--output", "{sed}.png"], "did you mean 'seed'"),
        (["--gif", "--frames", "0"], "frames is 0"),
        (["--from", "missing.png"], "no file 'missing.png'"),
    ],
)
def test_bad_requests(capsys, ddpm_root, words, said):
    model = [] if "--model" in words or "--from" in words else ["--model", ddpm_root, "--steps", "2"]
    assert said in refused(capsys, *model, *words)


def test_a_text_model_needs_a_prompt(capsys, stable_diffusion):
    assert "needs a prompt" in refused(capsys, "-m", stable_diffusion)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"stepps": 3}, "did you mean 'steps'"), ({"model": 3}, "name the model 3"), ({"steps": "many"}, "'many'")],
)
def test_settings_that_somebody_else_wrote(capsys, ddpm_root, settings, said):
    images.save_png(Image.new("L", (4, 4)), "odd.png", {"model": str(ddpm_root), **settings})
    assert said in refused(capsys, "--from", "odd.png")


def test_another_machine_is_noted(capsys, ddpm_root):
    (path,) = run(capsys, "-m", ddpm_root, *STEPS)
    settings = images.read_settings(path)
    settings["made_with"]["torch"] = "2.6.0"
    images.save_png(Image.open(path), "theirs.png", settings)
    assert cli.main(["generate", "--from", "theirs.png"]) == 0
    assert f"torch 2.6.0 (here {torch.__version__})" in capsys.readouterr().err
    assert cli.main(["generate", "--from", "theirs.png", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_what_is_finished_stays_after_an_interrupt(capsys, monkeypatch, ddpm_root):
    original, written = images.save_png, []

    def interrupt_the_second(image, path, settings):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        original(image, path, settings)

    monkeypatch.setattr(images, "save_png", interrupt_the_second)
    assert cli.main(["generate", "-m", str(ddpm_root), *STEPS, "-n", "3"]) == 130
    assert capsys.readouterr().out.splitlines() == [str(written[0])]
    assert images.read_settings(written[0])["seed"] == 5


def test_every_setting_has_its_flag():
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    known = {action.dest for action in parser._actions}
    assert set(generate._SETTINGS) <= known


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("dpmsolver", "DPMSolverMultistepScheduler"),
        ("UniPC", "UniPCMultistepScheduler"),
        ("lms", "LMSDiscreteScheduler"),
    ],
)
def test_short_names_of_schedulers(capsys, stable_diffusion, short, name):
    (path,) = run(capsys, "a dog", "-m", stable_diffusion, "--steps", "2", "--scheduler", short)
    assert images.read_settings(path)["scheduler"] == name
