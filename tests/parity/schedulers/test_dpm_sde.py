"""Trajectories of DPM-Solver++ (SDE) with the noise of one Brownian motion."""

from __future__ import annotations

from typing import Any

import torch

import safelight

from ...helpers.sampling import Run
from ...helpers.sigma_parity import FEWER, SIGMA_SPACINGS, SigmaParity, no_sample
from ...helpers.trajectories import GRIDS, LATENT_BETAS, ONE_GRID, PREDICTIONS, STEPS, Config, Reason

NAME = "DPMSolverSDEScheduler"


class TestDPMSolverSDE(SigmaParity):
    tables = {
        NAME: {
            **LATENT_BETAS,
            "prediction_type": PREDICTIONS,
            **GRIDS,
            "noise_sampler_seed": [None, 7, [5, 2**40]],
            "timestep_spacing": SIGMA_SPACINGS,
            "steps_offset": [0, 1],
            "timetable": [*STEPS, 7, 2, 1, FEWER],
            "s_noise": [1.0, 1.1],
        },
    }
    unseeded = (NAME,)
    reasons = [
        ONE_GRID,
        Reason(
            "more steps than timesteps, rounded: some are of no length, and diffusers divides their noise by 0",
            lambda name, c: c["num_train_timesteps"] == 20 and c["timestep_spacing"] == "trailing",
            "is finite",
        ),
        no_sample(NAME),
    ]
    further = [
        (NAME, {"timestep_spacing": "trailing", "timetable": 61, "noise_sampler_seed": 7}, None),
        (NAME, {"timestep_spacing": "trailing", "timetable": 30, "num_train_timesteps": 20}, None),
        (NAME, {"use_karras_sigmas": True, "prediction_type": "v_prediction", "noise_sampler_seed": [3, 4]}, None),
    ]

    def attempt(self, library: Any, name: str, combination: Config) -> tuple[Run, Any, Config]:
        """Without a seed in the config theirs draws one from the global generator; ours is given the same one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if library is safelight and combination.get("noise_sampler_seed") is None:
                combination = {**combination, "noise_sampler_seed": int(torch.randint(0, 2**63 - 1, []))}
            return super().attempt(library, name, combination)
