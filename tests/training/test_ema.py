"""The weight average on its own: the closed form, put in and taken out, errors."""

from __future__ import annotations

import pytest
import torch

from safelight import UNet2DModel
from safelight.errors import ConfigError, InputError
from safelight.training_utils import EMAModel


def test_average_of_constant_drift_has_its_closed_form():
    value = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average = EMAModel([value], decay=0.5, min_decay=0.5)
    for _ in range(5):
        value.data += 1
        average.step([value])
    # The first step copies; from then on shadow ← (shadow + value) / 2.
    expected = 1.0
    for number in range(2, 6):
        expected = (expected + number) / 2
    assert average.shadow_params[0].item() == expected


def test_applied_to_gives_back_the_weights_even_after_an_error():
    value = torch.nn.Parameter(torch.ones(2))
    average = EMAModel([value])
    value.data.fill_(3.0)
    with pytest.raises(RuntimeError), average.applied_to([value]):
        assert value.tolist() == [1.0, 1.0]
        raise RuntimeError
    assert value.tolist() == [3.0, 3.0]


def test_save_and_load(tmp_path):
    config = {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = UNet2DModel(**config, **blocks, attention_head_dim=4)
    average = EMAModel(model.parameters(), decay=0.25, model_cls=UNet2DModel, model_config=model.config)
    average.step(model.parameters())
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, UNet2DModel)
    assert (loaded.decay, loaded.optimization_step) == (0.25, 1)
    assert all(torch.equal(a, b) for a, b in zip(loaded.shadow_params, average.shadow_params, strict=True))


@pytest.mark.parametrize(
    ("error", "message", "act"),
    [
        (InputError, "pass linear.parameters", lambda average, values: EMAModel(torch.nn.Linear(2, 2))),
        (InputError, "other shapes", lambda average, values: average.step(values[:1])),
        (InputError, "no stored parameters", lambda average, values: average.restore(values)),
        (ConfigError, "decay of an average is 1.5", lambda average, values: average.load_state_dict({"decay": 1.5})),
        (ConfigError, "optimization_step", lambda average, values: average.load_state_dict({"optimization_step": "1"})),
        (ConfigError, "list of tensors", lambda average, values: average.load_state_dict({"shadow_params": [1]})),
        (ConfigError, "needs model_cls", lambda average, values: average.save_pretrained("nowhere")),
    ],
)
def test_errors(error, message, act):
    values = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))]
    with pytest.raises(error, match=message):
        act(EMAModel(values), values)
