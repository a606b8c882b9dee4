"""The training loop: an objective, data, an optimiser and hooks, put together."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, InputError, NonFiniteError, check_choice
from . import checkpoints, schedules
from .data import Pictures, batches
from .draws import Draws, seed_for
from .ema import EMAModel
from .objectives import Batch, Loss

Objective = Callable[[nn.Module, Batch, Draws], Loss]
Record = dict[str, float]


@dataclass(frozen=True)
class TrainingSettings:
    """What a run does; together with the model, the objective and the data it determines every number in it."""

    steps: int  # optimiser steps in all
    batch_size: int = 64  # samples per optimiser step
    accumulation: int = 1  # micro-batches that one batch is cut into
    parallel: int = 1  # micro-batches computed at once, each in a thread of one core
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # a name of `SchedulerType`
    warmup: int = 100  # optimiser steps until the rate is reached
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float | None = 1.0  # None: no clipping
    ema_decay: float | None = 0.999  # None: no average
    precision: str = "auto"  # "float32", "bfloat16" (autocast), "auto": bfloat16 where the device computes in it
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulation} equal micro-batches"
            )
        if self.accumulation % self.parallel:
            raise ConfigError(f"accumulation {self.accumulation} cannot be done {self.parallel} at a time")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be positive")
        if self.ema_decay is not None and not 0 <= self.ema_decay <= 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}; it must be in [0, 1], or None for no average")
        check_choice("precision", self.precision, ("auto", "float32", "bfloat16"))


class Hook:
    """Something that happens beside the training: subclasses override what they need."""

    def start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """After each optimiser step; `record` holds its step number (from 1), loss, rate, gradient norm, …"""

    def stop(self, trainer: Trainer) -> None:
        """After the last step, also of an interrupted run."""


class Trainer:
    """Trains `model` on `data` for `objective`.

    The result is a function of (model's initial weights, data, objective, settings) alone: it does not depend on
    `accumulation` beyond rounding, nor on where a run was stopped and resumed. `model` is trained in place; `ema` holds
    its average. An interrupt (ctrl-C, SIGTERM) ends the run after the current step, with everything saved by the hooks.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Pictures,
        settings: TrainingSettings,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        hooks: Sequence[Hook] = (),
    ):
        self.model, self.objective, self.data, self.settings = model, objective, data, settings
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise InputError(f"no parameter of {type(model).__name__} requires a gradient: there is nothing to train")
        self.optimizer = optimizer or torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.rate_factor = schedules.factor(
            settings.schedule, warmup=settings.warmup, total=settings.steps, lr_init=settings.learning_rate
        )
        self.ema = None
        if settings.ema_decay is not None:
            self.ema = EMAModel(model.parameters(), settings.ema_decay, foreach=True)
        self.hooks = list(hooks)
        self.step = 0  # optimiser steps done
        self.interrupted = False
        self.device = self.parameters[0].device
        self._threads: ThreadPoolExecutor | None = None
        if settings.parallel > 1:
            if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
                raise ConfigError(
                    "parallel micro-batches would draw dropout in no fixed order: use parallel=1 or dropout=0"
                )
            self._threads = ThreadPoolExecutor(settings.parallel, initializer=torch.set_num_threads, initargs=(1,))
        self.autocast = settings.precision == "bfloat16" or (
            settings.precision == "auto" and computes_in_bfloat16(self.device)
        )

    def run(self, until: int | None = None) -> None:
        """Train to the end, or to optimiser step `until`; a non-finite loss or gradient is a `NonFiniteError`."""
        stop = min(self.settings.steps, self.settings.steps if until is None else until)
        self.interrupted = False
        self.model.train()
        for hook in self.hooks:
            hook.start(self)
        stream = batches(self.data, self.settings.seed, self.settings.batch_size, self.step, stop)
        with self._interrupts(), contextlib.closing(stream):
            for batch in stream:
                record = self.train_step(batch)
                for hook in self.hooks:
                    hook.after_step(self, record)
                if self.interrupted:
                    break
        for hook in self.hooks:
            hook.stop(self)

    def train_step(self, batch: Batch) -> Record:
        """One optimiser step on `batch` (`settings.batch_size` samples)."""
        started, settings = time.perf_counter(), self.settings
        draws = Draws(settings.seed, self.step * settings.batch_size, settings.batch_size)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.rate_factor(self.step + 1)
        # Dropout and the like draw from torch's own generator: seeded per step, and left as it was for the caller.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed_for(settings.seed, "model", self.step))
            loss, metrics = self._backward(batch, draws)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm or float("inf")).item()
        self._check_finite(loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.model.parameters())
        self.step += 1
        return {
            "step": self.step,
            "epoch": self.step * settings.batch_size / len(self.data),
            "loss": loss,
            **metrics,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            "seconds": time.perf_counter() - started,
        }

    def _backward(self, batch: Batch, draws: Draws) -> tuple[float, Record]:
        """Put the gradients of the mean loss over the batch into `.grad`; returns the mean loss and metrics."""
        size = self.settings.batch_size // self.settings.accumulation
        parts = [slice(start, start + size) for start in range(0, self.settings.batch_size, size)]
        micros = [({name: values[part] for name, values in batch.items()}, draws[part]) for part in parts]
        results = (self._threads.map if self._threads else map)(self._gradients, *zip(*micros, strict=True))
        total: Record = {}
        # Summed in the order of the parts, whichever thread is ready first.
        for values, gradients in results:
            for name, value in values.items():
                total[name] = total.get(name, 0.0) + value / len(parts)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return total.pop("loss"), total

    def _gradients(self, micro: Batch, draws: Draws) -> tuple[Record, tuple[torch.Tensor | None, ...]]:
        """Loss and metrics of a micro-batch, and its share of the batch's gradients."""
        micro = {name: values.to(self.device) for name, values in micro.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.objective(self.model, micro, draws)
        gradients = torch.autograd.grad(loss.total / self.settings.accumulation, self.parameters, allow_unused=True)
        return {"loss": loss.total.item(), **{k: v.item() for k, v in loss.metrics.items()}}, gradients

    def _check_finite(self, loss: float, norm: float) -> None:
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not abs(value) < float("inf"):
                raise NonFiniteError(
                    f"the {what} of step {self.step + 1} is {value}; the weights are still those before it. Try a "
                    "lower learning rate, a longer warm-up or precision 'float32', and look for damaged data"
                )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Inside the `with` block the model is in evaluation mode and holds the averaged weights."""
        self.model.eval()
        try:
            with contextlib.nullcontext() if self.ema is None else self.ema.applied_to(self.model.parameters()):
                yield self.model
        finally:
            self.model.train()

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Turn the first interrupt into a stop after the current step; a second one is raised at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def save_checkpoint(self, folder: str | os.PathLike) -> Path:
        """Write everything needed to continue into `folder/step-NNNNNNNN`, atomically."""
        tensors, rest = checkpoints.flatten_optimizer(self.optimizer.state_dict())
        parts = {"model": dict(self.model.state_dict()), "optimizer": tensors}
        average: dict[str, Any] = {}
        if self.ema is not None:
            average = self.ema.state_dict()
            parts["ema"] = dict(zip(dict(self.model.named_parameters()), average.pop("shadow_params"), strict=True))
        state = {"settings": asdict(self.settings), "samples": len(self.data), "optimizer": rest, "ema": average}
        return checkpoints.save(folder, self.step, parts, state)

    def load_checkpoint(self, checkpoint: str | os.PathLike) -> None:
        """Continue from a checkpoint; raises `ConfigError` if its data, seed or batch size were others."""
        parts, state = checkpoints.load(checkpoint)
        now = {"samples": len(self.data), "seed": self.settings.seed, "batch_size": self.settings.batch_size}
        then = {**state["settings"], "samples": state["samples"]}
        for name, value in now.items():
            if then[name] != value:
                raise ConfigError(
                    f"the run in {os.fspath(checkpoint)!r} has {name} {then[name]}, now it is {value}; "
                    "resume with the same value, or start a new run"
                )
        checkpoints.check_fits(checkpoint, "model", parts, self.model.state_dict())
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(checkpoints.unflatten_optimizer(parts["optimizer"], state["optimizer"]))
        if self.ema is not None:
            checkpoints.check_fits(checkpoint, "ema", parts, dict(self.model.named_parameters()))
            shadows = [parts["ema"][name].to(self.device) for name, _ in self.model.named_parameters()]
            self.ema.load_state_dict({**state["ema"], "decay": self.ema.decay, "shadow_params": shadows})
        self.step = state["step"]


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16 products (without them bfloat16 is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("avx512_bf16", "amx_tile"))
    return False
