"""What solvers share whose noise levels are those of the run's timetable, in σ: `sigmas`, noising, scaled inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .base import Grid, Scheduler
from .prediction import Reading


class TimetableScheduler(Scheduler):
    """Base of the solvers with a grid of σ; x = x₀ + σ·ε unless a family says otherwise in `_alpha_sigma`."""

    # σ -> how x₀ and ε follow from x at that σ and the network's output, for solvers that combine x itself
    _reading: Callable[[float], Reading]

    @property
    def sigmas(self) -> torch.Tensor:
        """The σ of each evaluation and the final one, (len(timesteps) + 1,) float32."""
        return torch.tensor(self._run().sigmas, dtype=torch.float32)

    def _training_sigmas(self) -> np.ndarray:
        """σ/α of each training timestep, ascending."""
        return (((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5).cpu().numpy()

    def _alpha_sigma(self, sigma: Any) -> tuple[Any, Any]:
        """α and the factor of ε in x = α·x₀ + σ·ε at the grid's `sigma`, a float or a tensor."""
        return 1.0, sigma

    def _levels(self, grid: Grid) -> Sequence[tuple[float, float]]:
        assert grid.sigmas is not None
        alpha, sigma = self._alpha_sigma(torch.from_numpy(grid.sigmas[: len(grid.times)].copy()))
        alphas = alpha.tolist() if isinstance(alpha, torch.Tensor) else [alpha] * len(grid.times)
        return list(zip(alphas, sigma.tolist(), strict=True))

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """What the network sees of `sample` at `timestep` (one of `timesteps`), where `step` goes on."""
        run = self._run()
        expected = self._step_index if self._step_index is not None else self._begin_index or 0
        i = expected if timestep is None else self._locate(run, timestep)[1]
        if i != self._step_index:
            self._step_index, self._state = i, self.initial_state(run)
        return self.scale_input(run, i, sample)

    def _indices(self, timesteps: Any) -> list[int]:
        return [self.index_for_timestep(t) for t in torch.as_tensor(timesteps).reshape(-1).tolist()]

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, corrected: bool = False
    ) -> torch.Tensor:
        """The noisy sample α·x₀ + σ·ε at `timesteps` (B,) of the run's timetable, or where `set_begin_index` says.

        `original_samples` and `noise` are (B, …). Raises `InputError` for a timestep that is not in the timetable. σ is
        rounded to the samples' dtype first; `corrected` rounds last.
        """
        sigmas = self.sigmas.to(original_samples.device)
        if self._begin_index is None:
            chosen = sigmas[self._indices(timesteps)]
        else:
            chosen = sigmas[self._begin_index if self._step_index is None else self._step_index]
        chosen = chosen if corrected else chosen.to(original_samples.dtype)
        alpha, sigma = self._alpha_sigma(chosen.reshape(-1, *[1] * (original_samples.ndim - 1)))
        noisy = alpha * original_samples + sigma * noise
        return noisy.to(original_samples.dtype)
