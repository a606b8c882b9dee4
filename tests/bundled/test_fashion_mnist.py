"""The model that ships: small, as its recipe says, and its pictures have the shapes of what was asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from safelight import DDIMPipeline, DiffusionPipeline
from safelight.bundled import bundled_models
from safelight.errors import InputError
from safelight.training.recipes import Unconditional
from safelight.training.unconditional import build_model, build_scheduler

FOLDER = bundled_models()["fashion-mnist"]
PER_CLASS = 4


@pytest.fixture(scope="module")
def pipeline():
    loaded = DiffusionPipeline.from_pretrained("fashion-mnist")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def pictures(pipeline):
    """Brightness in [0, 1]: (class, picture, row, column)."""
    labels = [label for label in range(10) for _ in range(PER_CLASS)]
    images = pipeline(class_labels=labels, num_inference_steps=20, seed=0, output_type="np").images
    return images.reshape(10, PER_CLASS, 28, 28)


def test_size_and_files():
    weights = FOLDER / "unet" / "diffusion_pytorch_model.safetensors"
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 6_000_000
    with safe_open(weights, framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert "safelight train unconditional --data fashion-mnist" in card


def entries(built):
    """The config as a file holds it, without what describes the file."""
    return {name: value for name, value in json.loads(built.to_json_string()).items() if not name.startswith("_")}


def test_made_by_the_recipe(pipeline):
    recipe = Unconditional.for_data("fashion-mnist")
    assert type(pipeline) is DDIMPipeline
    assert entries(pipeline.unet) == entries(build_model(recipe, classes=10))
    assert entries(pipeline.scheduler) == entries(build_scheduler(recipe))


def test_clothes_have_the_shape_of_their_class(pipeline, pictures):
    classes = {name: pictures[int(label)] for label, name in pipeline.config["id2label"].items()}
    for name in ("Sneaker", "Sandal"):
        assert classes[name][:, :6].mean() < 0.05 < classes[name][:, 14:22].mean()
    trousers = classes["Trouser"]
    assert trousers[:, :, :5].mean() < 0.1 and trousers[:, :, -5:].mean() < 0.1
    assert (trousers[:, 2:26].max(axis=2) > 0.3).mean() > 0.9  # from top to bottom
    # A pullover has sleeves where a dress has nothing.
    assert classes["Pullover"][:, 12:24, 2:7].mean() > classes["Dress"][:, 12:24, 2:7].mean() + 0.2
    # An ankle boot goes up where a sneaker does not.
    assert classes["Ankle boot"][:, 6:11].mean() > 2 * classes["Sneaker"][:, 6:11].mean()


def test_pictures_of_a_class_differ(pictures):
    spread = np.abs(pictures[:, :, None] - pictures[:, None]).mean(axis=(3, 4))
    assert (spread[:, ~np.eye(PER_CLASS, dtype=bool)] > 0.02).all()


def test_names_numbers_and_guidance(pipeline):
    named = pipeline(class_labels=["bag"], num_inference_steps=4, seed=3, output_type="pt").images
    numbered = pipeline(class_labels=8, num_inference_steps=4, seed=3, output_type="pt").images
    guided = pipeline(class_labels=8, num_inference_steps=4, seed=3, guidance_scale=2.0, output_type="pt").images
    assert torch.equal(named, numbered) and not torch.equal(guided, named)
    with pytest.raises(InputError, match="Bag"):
        pipeline(class_labels=["bags"], num_inference_steps=4)
