"""Euler's method on the straight path from noise to data (Liu et al. 2022, arXiv:2209.03003, algorithm 1)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch

from ..configuration import register_to_config
from ..errors import InputError
from ..signatures import shared
from .base import Advance, Grid, Plan, SchedulerOutput
from .flow import FlowScheduler
from .prediction import Mix

FlowMatchEulerDiscreteSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    change: float  # of σ
    renewed: float | None  # where sampling is stochastic: the share of fresh noise, the rest being x₀


class FlowMatchEulerDiscreteScheduler(FlowScheduler):
    """Steps x ← x + (σ' − σ)·y, or with `stochastic_sampling` x ← (1 − σ')·x₀ + σ'·z with fresh noise z.

    Run options: `s_churn`, `s_tmin`, `s_tmax` and `s_noise` change nothing, as in the reference; a `corrected` run
    refuses churn. `per_token_timesteps` (B, T) gives every token of a sample (B, T, C) its own timestep: each goes on
    to the next lower σ of the run. There y means x₀ − ε, and stochastic steps read it as ε − x₀ all the same, as in
    the reference (`corrected` does not).
    """

    options: ClassVar = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0}
    _step_arguments: ClassVar = {"generator": None, "per_token_timesteps": None, "return_dict": True}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, shift: float = 1.0, use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5, max_shift: float | None = 1.15, base_image_seq_len: int | None = 256,
        max_image_seq_len: int | None = 4096, invert_sigmas: bool = False, shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, time_shift_type: str = "exponential", stochastic_sampling: bool = False,
    ):  # fmt: skip
        self._set_up()

    def _rows(
        self, grid: Grid, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        if grid.corrected and s_churn:
            raise InputError(f"s_churn is {s_churn}; {type(self).__name__} has no churn; use stochastic_sampling")
        stochastic = self._settings["stochastic_sampling"]
        renewed = self._noise_after(grid) if stochastic else [None] * len(grid.times)
        changes = (grid.sigmas[1:] - grid.sigmas[:-1]).tolist()
        rows = [_Row(*parts) for parts in zip(self._x0_readings(grid), changes, renewed, strict=True)]
        return rows, [stochastic] * len(rows)

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """Standard normal noise as `Scheduler.draw_noise` makes it, in float32."""
        return super().draw_noise(plan, i, sample, generator, torch.float32) if plan.needs_noise[i] else None

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        x = sample.float()
        x0 = row.x0(x, model_output)
        if row.renewed is not None and noise is not None:
            previous = torch.lerp(x0, noise.type_as(x0), row.renewed)
        else:
            previous = torch.add(x, model_output, alpha=row.change)
        return Advance(previous.type_as(model_output), None, x0)

    def advance_tokens(
        self,
        plan: Plan,
        i: int,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor | None = None,
    ) -> Advance:
        """As `advance`, with a timestep for each token: `model_output`, `sample` (B, T, C), `timesteps` (B, T).

        `model_output` means x₀ − ε. Where `plan.needs_noise[i]`, `noise` is needed.
        """
        assert plan.grid.sigmas is not None
        if timesteps.shape != sample.shape[:2] or sample.ndim != 3:
            raise InputError(
                f"per_token_timesteps has shape {tuple(timesteps.shape)} and the sample {tuple(sample.shape)}; "
                "(B, T) and (B, T, C) are needed"
            )
        self._row(plan, i)
        x, sigma = sample.float(), timesteps / len(self)
        known = torch.tensor([0.0, *sorted(plan.grid.sigmas.tolist())]).to(sigma)
        lower = torch.searchsorted(known[1:], sigma - 1e-6)  # how many σ of the run are; where none is, 0 is next
        sigma, following = sigma.unsqueeze(-1), known[lower].unsqueeze(-1)
        x0 = x + sigma * model_output
        if noise is None:
            return Advance(x + (sigma - following) * model_output, None, x0)
        mean = x0 if plan.grid.corrected else x - sigma * model_output
        return Advance((1 - following) * mean + following * noise, None, x0)

    @shared
    def step(
        self, model_output: Any, timestep: Any, sample: Any, *rest: Any, per_token_timesteps: Any = None, **options: Any
    ) -> Any:
        """As `FamiliarSurface.step`; `per_token_timesteps` (B, T) gives each token its own timestep."""
        if per_token_timesteps is None:
            return super().step(model_output, timestep, sample, *rest, **options)
        generator, whole = options.pop("generator", None), options.pop("return_dict", True)
        given = {name: value for name, value in options.items() if value is not None}
        run, i = self._locate(self._with_options(given), timestep)
        noise = self.draw_noise(run, i, sample, generator)
        result = self.advance_tokens(run, i, model_output, sample, per_token_timesteps, noise)
        self._step_index = i + 1
        return self._outcome(result) if whole else self._outcome(result).to_tuple()
