"""Consistency sampling on the straight path, also from small to large (Luo et al. 2023, arXiv:2310.04378, sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch

from ..configuration import register_to_config
from ..errors import ConfigError, InputError, check_choice
from ..randomness import randn_tensor
from .base import Advance, Grid, Plan, SchedulerOutput
from .flow import FlowScheduler
from .prediction import Mix

FlowMatchLCMSchedulerOutput = SchedulerOutput

_MODES: tuple[Any, ...] = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area", None)


class _Row(NamedTuple):
    x0: Mix
    renewed: float  # the share of fresh noise, the rest being x₀
    # How many times the first evaluation's size x is and is to be; NaN where a run has another number of evaluations
    # than there are scales.
    scales: tuple[float, float] | None
    mode: str = ""


class FlowMatchLCMScheduler(FlowScheduler):
    """Steps x ← (1 − σ')·x₀ + σ'·z with fresh noise z.

    `scale_factors`: after evaluation i the image is resized (interpolation `upscale_mode`) to `scale_factors[i]` ≥ 1
    times the size that the run began with, so a run has one evaluation more than there are factors (Starodubcev et al.
    2025, arXiv:2503.16397). Samples are of their evaluation's size, also in runs that start inside the timetable.
    """

    choices: ClassVar = {**FlowScheduler.choices, "upscale_mode": _MODES}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, shift: float = 1.0, use_dynamic_shifting: bool = False,
        base_shift: float = 0.5, max_shift: float = 1.15, base_image_seq_len: int = 256, max_image_seq_len: int = 4096,
        invert_sigmas: bool = False, shift_terminal: float | None = None, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, time_shift_type: str = "exponential",
        scale_factors: Sequence[float] | None = None, upscale_mode: str | None = "bicubic",
    ):  # fmt: skip
        self._set_up()
        self.set_scale_factors(scale_factors, upscale_mode)

    def set_scale_factors(self, scale_factors: Sequence[float] | None, upscale_mode: str | None) -> None:
        """Resize by `scale_factors` (None: never) with `upscale_mode` from now on, as in the config of that name."""
        check_choice("upscale_mode", upscale_mode, _MODES)
        factors = [] if scale_factors is None else [float(factor) for factor in scale_factors]
        if not all(1 <= factor < math.inf for factor in factors):
            raise ConfigError(f"scale_factors are {factors}; numbers of at least 1 are needed")
        self._scale_factors, self._upscale_mode = factors, upscale_mode
        if self._active is not None:
            self._active = self._again(self._active, self._active.options)

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        assert grid.sigmas is not None
        count, factors, mode = len(grid.times), self._scale_factors, self._upscale_mode
        scales: list[tuple[float, float] | None] = [None] * count
        if factors and mode:
            fits = count == len(factors) + 1
            scales = [*zip([1.0, *factors], factors, strict=False), None] if fits else [(math.nan, math.nan)] * count
        columns = zip(self._x0_readings(grid), self._noise_after(grid), scales, strict=True)
        return [_Row(*parts, mode or "") for parts in columns], [True] * count

    def _size_after(self, row: _Row, size: Sequence[int]) -> list[int]:
        """The height and width after an evaluation of samples of `size`."""
        assert row.scales is not None
        now, then = row.scales
        if math.isnan(now):
            count = len(self._scale_factors)
            raise InputError(f"{count} scale_factors need a run of {count + 1} evaluations, which this one has not")
        # As `now` is at least 1, rounding back finds the very size that the run began with.
        return [round(then * round(length / now)) for length in size]

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """Standard normal noise of the size after evaluation `i`, in float32 at least."""
        row, shape = self._row(plan, i), list(sample.shape)
        if row.scales is not None:
            shape[2:] = self._size_after(row, shape[2:])
        wide = torch.promote_types(torch.float32, dtype or sample.dtype)
        return randn_tensor(shape, generator=generator, device=sample.device, dtype=wide)

    def _advance(
        self, row: _Row, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: torch.Tensor | None
    ) -> Advance:
        assert noise is not None
        x0 = row.x0(sample.float(), model_output)
        if row.scales is not None:
            size = self._size_after(row, x0.shape[2:])
            x0 = torch.nn.functional.interpolate(x0, size=size, mode=row.mode)
        return Advance(torch.lerp(x0, noise.type_as(x0), row.renewed).type_as(model_output), None, x0)
