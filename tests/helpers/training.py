"""A network and a data set that train in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from safelight.training.data import to_signed
from safelight.training.trainer import Trainer, TrainingSettings


@dataclass
class Prediction:
    sample: torch.Tensor


class TinyNetwork(nn.Module):
    """Conditioned on time and class, with dropout: everything that a run has to repeat exactly."""

    def __init__(self, classes: int = 3, dropout: float = 0.1):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.condition = nn.Linear(1, 8)
            self.classes = nn.Embedding(classes, 8)
            self.enter = nn.Conv2d(1, 8, 3, padding=1)
            self.leave = nn.Conv2d(8, 1, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.seen: list[dict[str, torch.Tensor]] = []

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> Prediction:
        self.seen.append({"sample": sample.detach(), "timestep": timestep, "class_labels": class_labels})
        shift = self.condition(timestep[:, None] / 1000) + self.classes(class_labels)
        return Prediction(self.leave(self.dropout(torch.tanh(self.enter(sample) + shift[:, :, None, None]))))


class TinyPictures:
    """`count` random pictures of 4 × 4 in two classes."""

    channels, resolution = 1, 4
    class_names = ["zero", "one"]  # noqa: RUF012

    def __init__(self, count: int = 11):
        self.pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(1)).byte()

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"images": to_signed(self.pixels[indices]), "class_labels": indices % 2}


def tiny_trainer(objective: Any, hooks: Any = (), network: TinyNetwork | None = None, **settings: Any) -> Trainer:
    """A trainer of the tiny network in float32, 10 steps of 8 samples unless told otherwise."""
    chosen = {"steps": 10, "batch_size": 8, "warmup": 2, "learning_rate": 1e-2, "precision": "float32", **settings}
    return Trainer(network or TinyNetwork(), objective, TinyPictures(), TrainingSettings(**chosen), hooks=hooks)


def all_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a run changes, by name: weights, average and optimiser state."""
    states = trainer.optimizer.state_dict()["state"]
    return {
        **trainer.model.state_dict(),
        **{f"ema.{k}": shadow for k, shadow in enumerate(trainer.ema.shadow_params if trainer.ema else [])},
        **{f"optimizer.{k}.{name}": value for k, state in states.items() for name, value in state.items()},
    }
