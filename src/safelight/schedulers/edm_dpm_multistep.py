"""DPM-Solver++, multistep, for EDM's networks (arXiv:2211.01095 on arXiv:2206.00364)."""

from __future__ import annotations

from typing import ClassVar

from ..configuration import register_to_config
from .dpm_multistep import MultistepScheduler
from .edm import EDMScheduler


class EDMDPMSolverMultistepScheduler(EDMScheduler, MultistepScheduler):  # type: ignore[misc]  # has no `mu`
    """The steps of `DPMSolverMultistepScheduler` with α = 1: x ← (σ'/σ)·x + (1 − σ'/σ)·D, D extrapolated from x₀.

    Options as there; `algorithm_type` is "dpmsolver++" or "sde-dpmsolver++", which has no third order.
    """

    choices: ClassVar = {
        **MultistepScheduler.choices,
        **EDMScheduler.choices,
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    }
    _without_third_order = ("sde-dpmsolver++",)

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
        solver_order: int = 2,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
    ):
        self._set_up()
