"""`safelight train`: its options, and a run from the command line to a pipeline that loads."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from safelight import DDPMPipeline
from safelight.cli import train
from safelight.errors import InputError
from safelight.training.recipes import PRESETS, Unconditional

SMALL = (
    "--resolution 8 --block-out-channels 8,16 --layers-per-block 1 --norm-num-groups 4 --batch-size 4 --sample-steps 2"
)


def parse(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(line.split())


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    for name in ("a", "b"):
        (place / name).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / name / "x.png")
    return place


def test_train_and_resume_from_the_command_line(folder, tmp_path, capsys):
    output = tmp_path / "run"
    assert train.run(parse(f"unconditional --data {folder} --output {output} --steps 2 {SMALL}")) == 0
    assert "step 2/2" in capsys.readouterr().err
    assert train.run(parse(f"unconditional --output {output} --resume --steps 3")) == 0
    assert "steps 2 to 3 of 4" in capsys.readouterr().err
    pipeline = DDPMPipeline.from_pretrained(output / "pipeline")
    assert pipeline.unet.config.num_class_embeds == 3
    image = pipeline(class_labels=1, num_inference_steps=2, seed=0).images[0]
    assert image.size == (8, 8)
    assert {"recipe.json", "metrics.jsonl", "checkpoints", "samples", "pipeline"} == {
        p.name for p in output.iterdir()
    } | {"metrics.jsonl"}


def test_interrupt_saves_and_says_how_to_continue(folder, tmp_path):
    output = tmp_path / "run"
    line = f"unconditional --data {folder} --output {output} --steps 100000 --checkpoint-every 100000 {SMALL}"
    code = (
        "import argparse, sys; from safelight.cli import train; p = argparse.ArgumentParser(); train.add_arguments(p); "
        f"sys.exit(train.run(p.parse_args({line.split()!r})))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        metrics = output / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "continue with --resume" in said
    assert len(list((output / "checkpoints").iterdir())) == 1


def test_options_are_those_of_the_recipe():
    given = parse("unconditional --output x --max-grad-norm none --no-classes --block-out-channels 4,8 --ema-decay 0.5")
    assert (given.max_grad_norm, given.classes, given.block_out_channels, given.ema_decay) == (None, False, (4, 8), 0.5)
    assert not hasattr(given, "steps")
    assert set(train._HELP) == {field.name for field in fields(Unconditional)}
    assert Unconditional.for_data("fashion-mnist").steps == PRESETS["fashion-mnist"]["steps"]


def test_data_must_be_named():
    with pytest.raises(InputError, match="--data fashion-mnist"):
        train.run(parse("unconditional --output nowhere"))
