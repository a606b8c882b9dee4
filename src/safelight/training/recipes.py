"""Recipes: the choices that make up a complete run, as plain data (the command line reads its options here)."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..configuration import check_known, read_json
from ..errors import ConfigError, check_choice


@dataclass(frozen=True)
class Unconditional:
    """A pixel-space `UNet2DModel` on pictures, by class where there are classes; kept as `recipe.json` in the run."""

    data: str  # "fashion-mnist", or a folder of pictures
    resolution: int = 64
    channels: int = 3
    mirror: bool = False
    classes: bool = True  # use the classes of the data, if it has any

    block_out_channels: tuple[int, ...] = (64, 128, 256, 256)
    layers_per_block: int = 2
    attention_levels: int = 1  # how many of the lowest levels attend
    norm_num_groups: int = 32
    dropout: float = 0.0

    prediction_type: str = "v_prediction"
    beta_schedule: str = "squaredcos_cap_v2"
    min_snr_gamma: float | None = None
    label_dropout: float = 0.1  # share of labels replaced by "no class", for guidance

    steps: int = 20_000
    batch_size: int = 64
    accumulation: int = 1
    parallel: int = 1
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 500
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    ema_decay: float | None = 0.999
    precision: str = "auto"
    seed: int = 0

    sample_steps: int = 30  # evaluations per picture in the sample grids
    guidance_scale: float = 1.0
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep: int = 2
    save_dtype: str = "float32"  # of the weights in the saved pipeline

    def __post_init__(self) -> None:
        check_choice("save_dtype", self.save_dtype, ("float32", "float16", "bfloat16"))
        levels = len(self.block_out_channels)
        if not 0 <= self.attention_levels <= levels:
            raise ConfigError(f"attention_levels is {self.attention_levels}; the model has {levels} levels")
        if self.resolution % 2 ** (levels - 1):
            raise ConfigError(
                f"resolution {self.resolution} cannot be halved {levels - 1} times; "
                f"use a multiple of {2 ** (levels - 1)}, or fewer block_out_channels"
            )

    @classmethod
    def for_data(cls, data: str, **choices: Any) -> Unconditional:
        """The defaults that suit `data`, with `choices` over them; raises `UnknownArgumentError` for an unknown one."""
        check_known(cls.__name__, choices, [field.name for field in fields(cls)])
        return cls(**{"data": data, **PRESETS.get(data, {}), **choices})

    @classmethod
    def read(cls, run: str | os.PathLike, **changes: Any) -> Unconditional:
        """The recipe of an earlier run in folder `run`, with `changes`."""
        stored = read_json(Path(run) / "recipe.json")
        stored["block_out_channels"] = tuple(stored["block_out_channels"])
        return replace(cls.for_data(**stored), **changes)


# What was found to work; a name of `data` -> choices.
PRESETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "resolution": 28,
        "channels": 1,
        "block_out_channels": (32, 64, 96),
        "layers_per_block": 1,
        "attention_levels": 0,
        "norm_num_groups": 8,
        "steps": 8_000,
        "batch_size": 32,
        "accumulation": 2,
        "parallel": 2,
        "learning_rate": 2e-3,
        "warmup": 300,
        "save_dtype": "float16",
    },
}
