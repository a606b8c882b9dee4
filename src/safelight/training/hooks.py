"""What happens beside training: progress, metrics, checkpoints, sample grids."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ..configuration import write_atomically
from . import checkpoints
from .trainer import Hook, Record, Trainer


class Progress(Hook):
    """A line with loss, rate and time left: rewritten in place on a terminal, else printed every `seconds`."""

    def __init__(self, seconds: float = 15.0, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.seconds = 0.5 if self.terminal else seconds

    def start(self, trainer: Trainer) -> None:
        self.first, self.began = trainer.step, time.monotonic()
        self.last_shown = 0.0
        self.loss: float | None = None
        parameters = sum(parameter.numel() for parameter in trainer.parameters)
        precision = "bfloat16 autocast" if trainer.autocast else "float32"
        print(
            f"{type(trainer.model).__name__}: {parameters:,} parameters; {len(trainer.data):,} pictures; "
            f"steps {trainer.step:,} to {trainer.settings.steps:,} of {trainer.settings.batch_size}; "
            f"{precision} on {trainer.device}",
            file=self.stream,
            flush=True,
        )

    def after_step(self, trainer: Trainer, record: Record) -> None:
        # A single step's loss is too noisy to read.
        self.loss = record["loss"] if self.loss is None else 0.98 * self.loss + 0.02 * record["loss"]
        now, total = time.monotonic(), trainer.settings.steps
        if now - self.last_shown < self.seconds and trainer.step < total:
            return
        self.last_shown = now
        rate = (trainer.step - self.first) / max(now - self.began, 1e-9)
        line = (
            f"step {trainer.step:,}/{total:,} ({100 * trainer.step / total:.1f} %)  epoch {record['epoch']:.2f}  "
            f"loss {self.loss:.4f}  lr {record['learning_rate']:.2e}  {rate:.2f} steps/s  "
            f"{clock(now - self.began)} gone, {clock((total - trainer.step) / rate)} left"
        )
        print(
            f"\r\x1b[K{line}" if self.terminal else line,
            end="" if self.terminal else "\n",
            file=self.stream,
            flush=True,
        )

    def stop(self, trainer: Trainer) -> None:
        if self.terminal:
            print(file=self.stream, flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class MetricsLog(Hook):
    """Appends every `every`-th step's record to a JSON-lines file; a resumed run first drops lines beyond its start."""

    def __init__(self, path: str | os.PathLike, every: int = 10):
        self.path, self.every = Path(path), every

    def start(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _step_of(line) <= trainer.step]
            write_atomically(self.path, lambda part: part.write_text("".join(f"{line}\n" for line in lines)))

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step % self.every == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                short = {k: v if isinstance(v, int) else float(f"{v:.6g}") for k, v in record.items()}
                file.write(json.dumps(short) + "\n")


def _step_of(line: str) -> float:
    """The step of a line in the log; a line that a crash cut short counts as beyond every step."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


class Checkpoints(Hook):
    """Saves every `every` steps and at the end or an interrupt, and keeps the latest `keep`."""

    def __init__(self, folder: str | os.PathLike, every: int = 1000, keep: int = 2):
        self.folder, self.every, self.keep = Path(folder), every, keep
        self.saved = -1

    def start(self, trainer: Trainer) -> None:
        self.saved = trainer.step

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step % self.every == 0:
            self._save(trainer)

    def stop(self, trainer: Trainer) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.step != self.saved:
            trainer.save_checkpoint(self.folder)
            checkpoints.prune(self.folder, self.keep)
            self.saved = trainer.step


class SampleGrids(Hook):
    """Every `every` steps and at the end, a picture of what `sample(model)` gives with the averaged weights.

    `sample` returns one PIL image; give it fixed seeds, so that the pictures of different steps can be compared.
    """

    def __init__(self, folder: str | os.PathLike, sample: Callable[[Any], Any], every: int = 1000):
        self.folder, self.sample, self.every = Path(folder), sample, every

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step % self.every and trainer.step != trainer.settings.steps:
            return
        with trainer.averaged() as model:
            grid = self.sample(model)
        path = self.folder / f"step-{trainer.step:08d}.png"
        write_atomically(path, lambda part: grid.save(part, format="PNG"))
