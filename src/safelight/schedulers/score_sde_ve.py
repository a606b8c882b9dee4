"""Predictor-corrector sampling of the variance-exploding SDE (Song et al. 2021, arXiv:2011.13456)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import ConfigError, InputError, check_positive
from ..outputs import Output
from ..randomness import randn_tensor
from .base import Advance, Grid, Plan, Scheduler, SchedulerOutput
from .prediction import Mix


@dataclass
class SdeVeOutput(Output):
    """What `step_pred` returns: x at the next noise level, and the same before fresh noise was added."""

    prev_sample: torch.Tensor
    prev_sample_mean: torch.Tensor


class _Row(NamedTuple):
    x0: Mix
    drift: float  # g²
    noise: float  # g


class ScoreSdeVeScheduler(Scheduler):
    """Steps x ← x + g²·s + g·z with the network's score s and g² = σ² − σ'² (eq. 47); its correction is eq. 48's.

    x = x₀ + σ·ε with σ = σ_min·(σ_max/σ_min)ᵗ at evenly spaced t from 1 to `sampling_eps`. The network is told σ: a
    plan's `timesteps` are σ, while the scheduler's are t, as scripts want them, and `sigmas` has the σ. Before each
    step come `correct_steps` corrections x ← x + δ·s + √(2δ)·z, δ = 2·(`snr`·‖z‖/‖s‖)² (algorithm 2; norms are averaged
    over the batch); those are the caller's to make. The state is the mean of the last step, which a run ends with.

    In the reference a step from t takes its σ and σ' from `discrete_sigmas`, evenly spaced log σ, at the whole number
    below t·(steps − 1): another grid than that of the t unless `sampling_eps` is tiny, and rounding may take the entry
    below. `corrected` steps along `sigmas`, to σ' = 0 in the end, without noise there.
    """

    custom: ClassVar[tuple[str, ...]] = ()
    timetable_options: ClassVar = {"sampling_eps": None, "sigma_min": None, "sigma_max": None}
    _compatibles = ()

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        snr: float = 0.15,
        sigma_min: float = 0.01,
        sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5,
        correct_steps: int = 1,
    ):
        self._check_settings()

    def _check_settings(self) -> None:
        super()._check_settings()
        settings = self._settings
        for name, least in (("num_train_timesteps", 1), ("correct_steps", 0)):
            if type(settings[name]) is not int or settings[name] < least:
                raise ConfigError(f"{name} is {settings[name]!r}; a whole number of at least {least} is needed")
        check_positive("snr", settings["snr"])
        _check_range(ConfigError, settings["sigma_min"], settings["sigma_max"], settings["sampling_eps"])

    def _training_grid(self, corrected: bool) -> Grid:
        return self._grid(len(self), corrected)

    def _grid(self, steps: int, corrected: bool, **given: Any) -> Grid:
        names = ("sigma_min", "sigma_max", "sampling_eps")
        low, high, end = (self.config[name] if given.get(name) is None else given[name] for name in names)
        _check_range(InputError, low, high, end)
        times = torch.linspace(1, end, steps)
        sigmas = low * (high / low) ** times
        return Grid(times.numpy(), steps, np.append(sigmas.numpy(), low), corrected=corrected)  # ends with σ at t = 0

    def _levels(self, grid: Grid) -> Sequence[tuple[float, float]]:
        assert grid.sigmas is not None
        return [(1.0, sigma) for sigma in grid.sigmas[:-1].tolist()]

    def _first_sigma(self, grid: Grid) -> float:
        return self._levels(grid)[0][1] if grid.corrected else self.config["sigma_max"]

    @staticmethod
    def _even(grid: Grid) -> torch.Tensor:
        """0, and then as many σ as there are steps, rising between the grid's ends, evenly in log σ."""
        assert grid.sigmas is not None
        low, high = np.log(grid.sigmas[[-1, 0]]).tolist()
        return torch.cat([torch.zeros(1), torch.linspace(low, high, grid.steps).exp()])

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        levels = [sigma for _, sigma in self._levels(grid)]
        if grid.corrected:
            start, end = torch.tensor(levels), torch.tensor([*levels[1:], 0.0])
        else:
            index = (torch.from_numpy(grid.times) * (grid.steps - 1)).long()
            start, end = self._even(grid)[index + 1], self._even(grid)[index]
        noise = (start**2 - end**2) ** 0.5
        columns = (noise.square().tolist(), noise.tolist())
        rows = [_Row(Mix(1.0, sigma**2), *parts) for sigma, *parts in zip(levels, *columns, strict=True)]
        return rows, [not grid.corrected or i + 1 < len(rows) for i in range(len(rows))]

    def _assemble(self, grid: Grid, options: dict[str, Any], device: Any = None) -> Plan:
        plan = super()._assemble(grid, options, device)
        told = torch.tensor([sigma for _, sigma in plan.levels])
        return replace(plan, timesteps=told.to(device), times=tuple(told.tolist()))

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        mean = torch.add(sample, model_output, alpha=row.drift)
        previous = mean if noise is None else torch.add(mean, noise, alpha=row.noise)
        return Advance(previous, mean, row.x0(sample, model_output))

    def correct(self, model_output: torch.Tensor, sample: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`sample` after one correction with normal `noise`; where the score is zero, `sample` itself. Pure."""
        score, random = (one.flatten(1).norm(dim=1).mean() for one in (model_output, noise))
        step = torch.where(score > 0, (self.config["snr"] * random / score) ** 2 * 2, 0)
        return (sample + step * model_output + (step * 2).sqrt() * noise).to(sample.dtype)

    def _shown(self, plan: Plan) -> torch.Tensor:
        return torch.tensor(self._shown_times(plan), device=plan.timesteps.device)

    def _shown_times(self, plan: Plan) -> tuple[float, ...]:
        return tuple(plan.grid.times[plan.begin :].tolist())

    def _outcome(self, result: Advance) -> Output:
        return SdeVeOutput(result.sample, result.state)

    @property
    def sigmas(self) -> torch.Tensor:
        """The σ of each of `timesteps`, which the network is told."""
        return torch.tensor(self._run().times)

    @property
    def discrete_sigmas(self) -> torch.Tensor:
        """As many σ as the run has steps, rising from its smallest to its largest, evenly in log σ."""
        return self._even(self._run().grid)[1:]

    def get_adjacent_sigma(self, timesteps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The entry of `discrete_sigmas` below the one at `timesteps` (B,), 0 below the first; `t` is not used."""
        return self._even(self._run().grid).to(timesteps.device)[timesteps]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        sampling_eps: float | None = None,
        device: Any = None,
        corrected: bool = False,
    ) -> None:
        """Begin a new run whose t go from 1 to `sampling_eps`, with the σ of the config; `set_sigmas` may follow."""
        super().set_timesteps(num_inference_steps, device, sampling_eps=sampling_eps, corrected=corrected)

    def set_sigmas(
        self,
        num_inference_steps: int,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> None:
        """Begin the run anew with other ends of σ (else the config's) and t (else the run's; unlike the reference)."""
        run = self._run()
        end = float(run.grid.times[-1]) if sampling_eps is None else sampling_eps
        super().set_timesteps(
            num_inference_steps, run.timesteps.device, corrected=run.grid.corrected,
            sampling_eps=end, sigma_min=sigma_min, sigma_max=sigma_max,
        )  # fmt: skip

    step_pred = Scheduler.step  # the predictor's

    def step_correct(
        self, model_output: torch.Tensor, sample: torch.Tensor, generator: Any = None, return_dict: bool = True
    ) -> Any:
        """One correction of `sample` (`correct`), with noise from `generator` (one, or a list with one per row)."""
        noise = randn_tensor(sample.shape, generator=generator).to(sample.device)
        output = SchedulerOutput(self.correct(model_output, sample, noise))
        return output if return_dict else output.to_tuple()

    def add_noise(  # type: ignore[override]
        self, original_samples: torch.Tensor, noise: torch.Tensor | None, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """x₀ + σ·ε with the σ at places `timesteps` (B,) of `discrete_sigmas`; fresh ε where `noise` is None."""
        sigmas = self.discrete_sigmas.to(original_samples.device)[timesteps.to(original_samples.device)]
        noise = torch.randn_like(original_samples) if noise is None else noise
        return original_samples + noise * sigmas.reshape(-1, *[1] * (original_samples.ndim - 1))


def _check_range(error: type[Exception], low: Any, high: Any, end: Any) -> None:
    if not 0 < low <= high < math.inf:
        raise error(f"sigma_min is {low!r} and sigma_max {high!r}; 0 < sigma_min <= sigma_max is needed")
    if not 0 <= end <= 1:
        raise error(f"sampling_eps is {end!r}; a number in [0, 1] is needed")
