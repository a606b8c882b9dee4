"""Euler's method for EDM's networks (Karras et al. 2022, arXiv:2206.00364, algorithm 2 without the second order)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError
from .base import Grid, SchedulerOutput
from .edm import EDMScheduler
from .euler import ChurnedEuler
from .spacing import descending

EDMEulerSchedulerOutput = SchedulerOutput


class EDMEulerScheduler(ChurnedEuler, EDMScheduler):
    """Steps x ← x + (σ' − σ)·(x − x₀)/σ, after raising σ to σ̂ = (1 + γ)·σ by fresh noise where churn is on.

    Run options as of `EulerDiscreteScheduler`. `step` also takes `pred_original_sample`: x₀, where a script knows it
    better than the network does; `advance` takes it as the state.

    Custom `sigmas` that fall are the σ of the evaluations. Ones that rise, in [0, 1], are places in the grid from
    `sigma_max` to `sigma_min`, which is how the reference reads all (to NaN where they are no places); with the
    exponential schedule only their number counts there, and `corrected` heeds the places.
    """

    custom = ("sigmas",)
    _step_arguments: ClassVar = {"generator": None, "return_dict": True, "pred_original_sample": None}
    _precision = torch.float64

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
    ):
        self._set_up()

    def _training_grid(self, corrected: bool) -> Grid:
        places = torch.arange(len(self) + 1, dtype=self._precision) / len(self)
        return self._final(self._spaced(places, corrected), corrected)

    @staticmethod
    def _given_values(name: str, values: Sequence[float]) -> np.ndarray:
        rising = hasattr(values, "__len__") and len(values) > 1 and values[0] < values[1]
        return descending(name, list(values)[::-1])[::-1].copy() if rising else descending(name, values)

    def _custom_grid(self, corrected: bool, sigmas: np.ndarray) -> Grid:
        if sigmas[0] < sigmas[-1]:
            if sigmas[0] < 0 or sigmas[-1] > 1:
                raise InputError(f"sigmas are {sigmas.tolist()}; falling σ, or rising places in [0, 1], are needed")
            return self._final(self._spaced(torch.from_numpy(sigmas), corrected), corrected)
        if sigmas[-1] <= 0:
            raise InputError(f"sigmas are {sigmas.tolist()}; each must be positive (the final one is the config's)")
        return self._final(sigmas.astype(np.float32), corrected)
