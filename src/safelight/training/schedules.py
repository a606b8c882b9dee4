"""Learning-rate schedules: each is a function from the optimiser step to a factor on the initial rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import ConfigError, check_choice

Factor = Callable[[int], float]


class SchedulerType(Enum):
    """The names that `get_scheduler` and `factor` know."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    PIECEWISE_CONSTANT = "piecewise_constant"


def _after_warmup(warmup: int, decay: Factor, peak: float = 1.0) -> Factor:
    """A straight line from 0 to `peak` over `warmup` steps, then `decay`."""
    return lambda step: peak * step / max(1, warmup) if step < warmup else decay(step)


def _progress(step: int, warmup: int, total: int) -> float:
    """How far between the end of the warm-up (0) and the end of training (1) `step` lies; unclipped."""
    return (step - warmup) / max(1, total - warmup)


def linear(warmup: int, total: int, f_min: float = 0.0, f_max: float = 1.0) -> Factor:
    return _after_warmup(
        warmup, lambda step: f_min + (f_max - f_min) * max(0.0, (total - step) / max(1, total - warmup)), f_max
    )


def cosine(warmup: int, total: int, cycles: float = 0.5) -> Factor:
    """SGDR without restarts (Loshchilov & Hutter 2017, eq. 5); `cycles` = 0.5 goes once from 1 down to 0."""
    return _after_warmup(
        warmup, lambda step: max(0.0, 0.5 * (1 + math.cos(2 * math.pi * cycles * _progress(step, warmup, total))))
    )


def cosine_with_restarts(warmup: int, total: int, cycles: int = 1) -> Factor:
    """SGDR (Loshchilov & Hutter 2017, eq. 5): `cycles` half-cosines, each starting again at 1; 0 from `total` on."""

    def decay(step: int) -> float:
        progress = _progress(step, warmup, total)
        return 0.0 if progress >= 1 else max(0.0, 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1))))

    return _after_warmup(warmup, decay)


def polynomial(warmup: int, total: int, lr_init: float, lr_end: float = 1e-7, power: float = 1.0) -> Factor:
    """From `lr_init` to `lr_end` as (1 - progress)^power; raises `ConfigError` unless both spans are positive."""
    if not lr_init > lr_end:
        raise ConfigError(f"lr_end is {lr_end}, which is not below the optimizer's rate {lr_init}")
    if not total > warmup:
        raise ConfigError(f"num_training_steps is {total}, which leaves nothing after {warmup} warm-up steps")

    def decay(step: int) -> float:
        remaining = 1 - (step - warmup) / (total - warmup)
        return lr_end / lr_init if step > total else ((lr_init - lr_end) * remaining**power + lr_end) / lr_init

    return _after_warmup(warmup, decay)


def piecewise_constant(rules: str) -> Factor:
    """`"1:10,0.1:20,0.005"`: factor 1 before step 10, 0.1 before step 20, 0.005 from there on."""
    try:
        *pairs, last = rules.split(",")
        bounds = sorted((int(until), float(value)) for value, until in (pair.split(":") for pair in pairs))
        final = float(last)
    except (ValueError, AttributeError):
        raise ConfigError(
            f"step_rules is {rules!r}; write factor:until_step pairs, as in '1:10,0.1:20,0.005'"
        ) from None
    return lambda step: next((value for until, value in bounds if step < until), final)


def factor(
    name: str | SchedulerType,
    *,
    warmup: int | None = None,
    total: int | None = None,
    cycles: int = 1,
    power: float = 1.0,
    step_rules: str | None = None,
    lr_init: float = 1.0,
) -> Factor:
    """The schedule called `name`; raises `ConfigError` for an unknown name or an argument that it needs and lacks."""
    name = name.value if isinstance(name, SchedulerType) else name
    check_choice("the learning-rate schedule", name, [kind.value for kind in SchedulerType])
    if name == "constant":
        return lambda step: 1.0
    if name == "piecewise_constant":
        return piecewise_constant(_needed(name, "step_rules", step_rules))
    warmup = _needed(name, "num_warmup_steps", warmup)
    if name == "constant_with_warmup":
        return _after_warmup(warmup, lambda step: 1.0)
    total = _needed(name, "num_training_steps", total)
    decaying: dict[str, Callable[[], Factor]] = {
        "linear": lambda: linear(warmup, total),
        "cosine": lambda: cosine(warmup, total),
        "cosine_with_restarts": lambda: cosine_with_restarts(warmup, total, cycles),
        "polynomial": lambda: polynomial(warmup, total, lr_init, power=power),
    }
    return decaying[name]()


def _needed(schedule: str, name: str, value: Any) -> Any:
    if value is None:
        raise ConfigError(f"the learning-rate schedule {schedule!r} needs {name}")
    return value


def get_scheduler(
    name: str | SchedulerType,
    optimizer: Optimizer,
    step_rules: str | None = None,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    num_cycles: int = 1,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """The schedule called `name`, on `optimizer`; steps are optimiser steps. Raises `ConfigError` as `factor` does."""
    multiplier = factor(
        name,
        warmup=num_warmup_steps,
        total=num_training_steps,
        cycles=num_cycles,
        power=power,
        step_rules=step_rules,
        lr_init=optimizer.defaults.get("lr", 1.0),
    )
    return LambdaLR(optimizer, multiplier, last_epoch)


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """The optimiser's own learning rate throughout."""
    return get_scheduler("constant", optimizer, last_epoch=last_epoch)


def get_constant_schedule_with_warmup(optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1) -> LambdaLR:
    """A linear rise over `num_warmup_steps`, then the optimiser's own learning rate."""
    return LambdaLR(optimizer, factor("constant_with_warmup", warmup=num_warmup_steps), last_epoch)


def get_piecewise_constant_schedule(optimizer: Optimizer, step_rules: str, last_epoch: int = -1) -> LambdaLR:
    """See `piecewise_constant` for how `step_rules` is written."""
    return LambdaLR(optimizer, piecewise_constant(step_rules), last_epoch)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    last_epoch: int = -1,
    f_min: float = 0.0,
    f_max: float = 1.0,
) -> LambdaLR:
    """A linear rise, then a linear fall from `f_max` to `f_min` times the learning rate."""
    return LambdaLR(optimizer, linear(num_warmup_steps, num_training_steps, f_min, f_max), last_epoch)


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: float = 0.5, last_epoch: int = -1
) -> LambdaLR:
    """A linear rise, then `num_cycles` waves of a cosine (one half: down to 0 at the end)."""
    return LambdaLR(optimizer, cosine(num_warmup_steps, num_training_steps, num_cycles), last_epoch)


def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: int = 1, last_epoch: int = -1
) -> LambdaLR:
    """A linear rise, then `num_cycles` falls along a cosine, each from the top."""
    return LambdaLR(optimizer, cosine_with_restarts(num_warmup_steps, num_training_steps, num_cycles), last_epoch)


def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """A linear rise, then a fall to `lr_end` along a polynomial of degree `power`."""
    lr_init = optimizer.defaults["lr"]
    return LambdaLR(optimizer, polynomial(num_warmup_steps, num_training_steps, lr_init, lr_end, power), last_epoch)
