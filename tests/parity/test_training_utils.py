"""The weight average and the signal-to-noise ratio against diffusers."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel as TheirEMA
from diffusers.training_utils import compute_snr as their_snr

from safelight import DDPMScheduler
from safelight.training_utils import EMAModel, compute_snr

OPTIONS = [
    {},
    {"decay": 0.9, "min_decay": 0.3},
    {"decay": 0.99, "update_after_step": 5},
    {"use_ema_warmup": True, "inv_gamma": 2.0, "power": 0.75},
]


def drifting_parameters():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4, generator=generator)) for _ in range(3)]
    parameters[1].requires_grad_(False)
    return parameters, generator


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_same_average(options, foreach):
    parameters, generator = drifting_parameters()
    ours, theirs = (cls(parameters, foreach=foreach, **options) for cls in (EMAModel, TheirEMA))
    for _ in range(20):
        for parameter in parameters:
            parameter.data += torch.randn(parameter.shape, generator=generator)
        for average in (ours, theirs):
            average.step(parameters)
        assert ours.cur_decay_value == theirs.cur_decay_value
        assert all(torch.equal(a, b) for a, b in zip(ours.shadow_params, theirs.shadow_params, strict=True))


def test_states_are_interchangeable():
    parameters, _ = drifting_parameters()
    ours, theirs = EMAModel(parameters, decay=0.5), TheirEMA(parameters, decay=0.9)
    ours.step(parameters)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.decay == 0.5
    back = EMAModel(parameters)
    back.load_state_dict(theirs.state_dict())
    assert {**back.state_dict(), "shadow_params": 0} == {**ours.state_dict(), "shadow_params": 0}


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_same_signal_to_noise_ratio(schedule):
    timesteps = torch.arange(0, 1000, 37)
    ours = compute_snr(DDPMScheduler(beta_schedule=schedule), timesteps)
    theirs = their_snr(diffusers.DDPMScheduler(beta_schedule=schedule), timesteps)
    assert torch.allclose(ours, theirs, rtol=1e-5)
