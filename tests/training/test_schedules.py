"""Learning-rate schedules: shape, names and errors (numbers are compared in tests/parity/test_optimization.py)."""

from __future__ import annotations

import itertools

import pytest
import torch

from safelight.errors import ConfigError
from safelight.optimization import SchedulerType, get_scheduler
from safelight.training import schedules


@pytest.mark.parametrize("kind", ["linear", "cosine", "cosine_with_restarts"])
def test_rises_to_one_and_falls_to_zero(kind):
    factor = schedules.factor(kind, warmup=10, total=100)
    assert [factor(step) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    values = [factor(step) for step in range(10, 101)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    assert values[-1] == pytest.approx(0, abs=1e-12)


def test_names_and_enum_members_are_the_same():
    for kind in SchedulerType:
        arguments = {"num_warmup_steps": 2, "num_training_steps": 9, "step_rules": "1:3,0.5"}
        rates = []
        for name in (kind, kind.value):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
            scheduler = get_scheduler(name, optimizer, **arguments)
            optimizer.step()
            scheduler.step()
            rates.append(scheduler.get_last_lr())
        assert rates[0] == rates[1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("cosine", {"total": 5}, "'cosine' needs num_warmup_steps"),
        ("linear", {"warmup": 5}, "'linear' needs num_training_steps"),
        ("piecewise_constant", {}, "needs step_rules"),
        ("piecewise_constant", {"step_rules": "1:ten,0.1"}, "write factor:until_step"),
        ("polynomial", {"warmup": 5, "total": 5}, "leaves nothing after 5 warm-up steps"),
        ("polynomial", {"warmup": 5, "total": 9, "lr_init": 1e-9}, "not below the optimizer's rate"),
    ],
)
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        schedules.factor(name, **arguments)
