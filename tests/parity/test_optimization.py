"""Learning-rate schedules against diffusers: every name, before, during and after the span."""

from __future__ import annotations

import diffusers.optimization as theirs
import pytest
import torch

import safelight.optimization as ours

CASES = [
    ("get_scheduler", {"name": "constant"}),
    ("get_scheduler", {"name": "constant_with_warmup", "num_warmup_steps": 7}),
    ("get_scheduler", {"name": "piecewise_constant", "step_rules": "1:10,0.1:25,0.01:30,0.005"}),
    ("get_scheduler", {"name": "linear", "num_warmup_steps": 7, "num_training_steps": 40}),
    ("get_scheduler", {"name": "cosine", "num_warmup_steps": 0, "num_training_steps": 40}),
    (
        "get_scheduler",
        {"name": "cosine_with_restarts", "num_warmup_steps": 7, "num_training_steps": 40, "num_cycles": 3},
    ),
    ("get_scheduler", {"name": "polynomial", "num_warmup_steps": 7, "num_training_steps": 40, "power": 2.0}),
    ("get_constant_schedule", {}),
    ("get_constant_schedule_with_warmup", {"num_warmup_steps": 3}),
    ("get_piecewise_constant_schedule", {"step_rules": "2:3,1"}),
    ("get_linear_schedule_with_warmup", {"num_warmup_steps": 5, "num_training_steps": 30, "f_min": 0.1, "f_max": 2.0}),
    ("get_cosine_schedule_with_warmup", {"num_warmup_steps": 5, "num_training_steps": 30, "num_cycles": 1.5}),
    ("get_cosine_with_hard_restarts_schedule_with_warmup", {"num_warmup_steps": 5, "num_training_steps": 30}),
    ("get_polynomial_decay_schedule_with_warmup", {"num_warmup_steps": 5, "num_training_steps": 30, "lr_end": 1e-4}),
]


def rates(library, function, arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    scheduler = getattr(library, function)(optimizer=optimizer, **arguments)
    result = []
    for _ in range(50):
        result.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return result


@pytest.mark.parametrize(("function", "arguments"), CASES)
def test_same_rates(function, arguments):
    assert rates(ours, function, arguments) == pytest.approx(rates(theirs, function, arguments), rel=1e-12, abs=1e-18)
