"""The unconditional recipe with real networks: it overfits, resumes to the bit, and what it saves loads and samples."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from safelight import DDIMPipeline, DDPMPipeline
from safelight.errors import ConfigError, InputError, UnknownArgumentError
from safelight.training.recipes import Unconditional
from safelight.training.trainer import Hook
from safelight.training.unconditional import UnconditionalRun

SMALL = {
    "resolution": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "batch_size": 8,
    "warmup": 5,
    "sample_steps": 3,
}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Eight pictures in two classes: bright on the left, bright on the right."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name, half in (("left", slice(0, 4)), ("right", slice(4, 8))):
        (folder / name).mkdir()
        for number in range(4):
            pixels = generator.integers(0, 60, (8, 8, 3), dtype=np.uint8)
            pixels[:, half] += 180
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return str(folder)


class Losses(Hook):
    def __init__(self):
        self.values = []

    def after_step(self, trainer, record):
        self.values.append(record["loss"])


def test_overfits_eight_pictures_and_samples_what_it_was_shown(pictures, tmp_path):
    losses = Losses()
    recipe = Unconditional.for_data(
        pictures, **SMALL, steps=100, learning_rate=5e-3, ema_decay=0.9, precision="float32"
    )
    UnconditionalRun(recipe, tmp_path, (losses,)).start()
    assert np.mean(losses.values[-20:]) < 0.4 * np.mean(losses.values[:5])
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipeline.config["id2label"] == {"0": "left", "1": "right"}
    images = pipeline(class_labels=["left", "right"], num_inference_steps=50, seed=0, output_type="np").images
    left, right = images[:, :, :4].mean((1, 2, 3)), images[:, :, 4:].mean((1, 2, 3))
    assert left[0] - right[0] > 0.3 and right[1] - left[1] > 0.3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_weights_are_those_of_a_straight_run(pictures, tmp_path, precision):
    recipe = Unconditional.for_data(pictures, **SMALL, steps=6, checkpoint_every=3, dropout=0.1, precision=precision)
    straight = UnconditionalRun(recipe, tmp_path / "straight")
    straight.start()
    stopped = UnconditionalRun(recipe, tmp_path / "stopped")
    stopped.trainer.run(until=3)
    resumed = UnconditionalRun(recipe, tmp_path / "stopped")
    resumed.resume()
    expected, got = straight.trainer.model.state_dict(), resumed.trainer.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    saved = [
        (tmp_path / name / "pipeline/unet/diffusion_pytorch_model.safetensors") for name in ("straight", "stopped")
    ]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_run_without_classes_in_half_precision_weights(pictures, tmp_path):
    recipe = Unconditional.for_data(
        pictures, **SMALL, steps=2, classes=False, sample_every=1, save_dtype="float16", attention_levels=1
    )
    UnconditionalRun(recipe, tmp_path).start()
    model = json.loads((tmp_path / "pipeline" / "unet" / "config.json").read_text())
    assert model["num_class_embeds"] is None
    assert model["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    size = sum(path.stat().st_size for path in (tmp_path / "pipeline").rglob("*.safetensors"))
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipeline.unet.dtype == torch.float32
    assert size < 2.2 * pipeline.unet.num_parameters() + 20_000
    assert pipeline(batch_size=2, num_inference_steps=2, seed=0, output_type="np").images.shape == (2, 8, 8, 3)


def test_a_folder_with_a_run_is_not_overwritten(pictures, tmp_path):
    recipe = Unconditional.for_data(pictures, **SMALL, steps=1)
    UnconditionalRun(recipe, tmp_path).start()
    with pytest.raises(InputError, match="holds a run already"):
        UnconditionalRun(recipe, tmp_path).start()
    assert Unconditional.read(tmp_path, steps=7) == Unconditional.for_data(pictures, **SMALL | {"steps": 7})


@pytest.mark.parametrize(
    ("error", "choices", "message"),
    [
        (UnknownArgumentError, {"batchsize": 3}, "did you mean 'batch_size'"),
        (ConfigError, {"resolution": 30, "block_out_channels": (8, 8, 8)}, "use a multiple of 4"),
        (ConfigError, {"attention_levels": 9}, "attention_levels is 9; the model has 4 levels"),
        (ConfigError, {"save_dtype": "fp16"}, "save_dtype is 'fp16'"),
    ],
)
def test_bad_recipes(error, choices, message):
    with pytest.raises(error, match=message):
        Unconditional.for_data("somewhere", **choices)
