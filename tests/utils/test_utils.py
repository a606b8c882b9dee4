"""The helpers that scripts import, under the usual names."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from safelight import InputError, NonFiniteError, configuration, configuration_utils, randomness, utils
from safelight.utils import import_utils, torch_utils


@pytest.mark.parametrize("name", [name for name in utils.__all__ if name.startswith("is_")])
def test_availability_is_that_of_the_package(name):
    package = name.removeprefix("is_").removesuffix("_available")
    assert getattr(utils, name)() == (importlib.util.find_spec(package) is not None)
    assert getattr(import_utils, name) is getattr(utils, name)


def test_gif_to_a_temporary_file():
    path = utils.export_to_gif([Image.new("RGB", (4, 4), color) for color in ("red", "blue")])
    try:
        with Image.open(path) as gif:
            assert (gif.n_frames, gif.size, gif.info["duration"]) == (2, (4, 4), 100)
    finally:
        os.unlink(path)
    with pytest.raises(InputError, match="fps is 0"):
        utils.export_to_gif([Image.new("RGB", (4, 4))], fps=0)


def test_gif_at_a_path(tmp_path):
    target: Path = tmp_path / "way.gif"
    assert utils.export_to_gif([Image.new("L", (4, 4))], target) == str(target)
    assert target.exists()


def test_tensors_as_pictures():
    with pytest.raises(NonFiniteError):
        utils.pt_to_pil(torch.full((1, 3, 2, 2), float("nan")))
    assert utils.pt_to_pil(torch.ones(1, 3, 2, 2))[0].getpixel((0, 0)) == (255, 255, 255)


def test_torch_helpers():
    model = torch.nn.Linear(2, 2)
    compiled = torch.compile(model)
    assert torch_utils.is_compiled_module(compiled)
    assert not torch_utils.is_compiled_module(model)
    assert torch_utils.unwrap_module(compiled) is torch_utils.unwrap_module(model) is model
    assert torch_utils.randn_tensor is randomness.randn_tensor


def test_config_classes_under_their_usual_module():
    assert configuration_utils.ConfigMixin is configuration.ConfigMixin
    assert configuration_utils.register_to_config is configuration.register_to_config
    assert configuration_utils.FrozenDict is configuration.FrozenConfig
