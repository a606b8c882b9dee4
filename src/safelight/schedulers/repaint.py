"""RePaint: inpainting with a network that was not trained for it (Lugmayr et al. 2022, arXiv:2201.09865)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError
from ..randomness import randn_tensor
from .base import Advance, Grid, Plan, Scheduler, SchedulerOutput
from .prediction import Mix, reading

RePaintSchedulerOutput = SchedulerOutput


class _Row(NamedTuple):
    x0: Mix
    unknown: Mix  # of x₀ and the output
    spread: float  # of the noise in it
    known: Mix  # of the original and the noise
    back: tuple[float, float] | None  # the factors of x and of fresh noise, where the run then jumps back


class RePaintState(NamedTuple):
    """What is to be filled in: the picture, (B, C, H, W), and a mask that is 1 where it is kept."""

    original_image: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class RePaintScheduler(Scheduler):
    """Steps x ← m·(√ᾱ'·x_known + √(1 − ᾱ')·z) + (1 − m)·(DDIM's step with η and the same z) (eq. 8).

    After every `jump_length` steps the run goes back by as many, adding noise, and takes them again, `jump_n_sample`
    times in all (sec. 4.2): what is filled in so comes to fit what is known. `timesteps` shows both ways, as scripts
    want it, which call `step` downwards and `undo_step` upwards. A plan has the steps downwards alone and goes back at
    their end; `initial_state` takes the picture and the mask, and `draw_noise` gives the noise of both, stacked.
    """

    timetable_options: ClassVar = {"jump_length": 10, "jump_n_sample": 10}
    _step_arguments: ClassVar = {"original_image": None, "mask": None, "generator": None, "return_dict": True}
    custom = ()
    _compatibles = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", eta: float = 0.0, trained_betas: Any = None, clip_sample: bool = True,
    ):  # fmt: skip
        self._set_up()
        self.eta, self.one, self.final_alpha_cumprod = eta, torch.tensor(1.0), torch.tensor(1.0)

    @property
    def _settings(self) -> dict[str, Any]:
        return {**super()._settings, "clip_sample_range": 1.0}

    def _grid(self, steps: int, corrected: bool, jump_length: int = 10, jump_n_sample: int = 10) -> Grid:
        for name, value in (("jump_length", jump_length), ("jump_n_sample", jump_n_sample)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; a whole number of at least 1 is needed")
        steps, times = min(steps, len(self)), []
        left = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_n_sample - 1)
        t = steps
        while t > 0:
            t -= 1
            times.append(t)
            if left.get(t):
                left[t] -= 1
                times.extend(range(t + 1, t + jump_length + 1))
                t += jump_length
        return Grid(np.array(times) * (len(self) // steps), steps, corrected=corrected)

    def _assemble(self, grid: Grid, options: dict[str, Any], device: Any = None) -> Plan:
        # The plan of the steps downwards, which keeps the whole way for `_shown`.
        downwards = np.append(True, np.diff(grid.times) < 0)
        return replace(super()._assemble(grid._replace(times=grid.times[downwards]), options, device), grid=grid)

    def _shown(self, plan: Plan) -> torch.Tensor:
        return torch.from_numpy(plan.grid.times.copy()).to(plan.timesteps.device)

    def _shown_times(self, plan: Plan) -> tuple[float, ...]:
        return tuple(plan.grid.times.tolist())

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        ends = grid.times - len(self) // grid.steps
        here, there = self._cumulative(grid.times), self._cumulative(ends, self.final_alpha_cumprod)
        variance = (1 - there) / (1 - here) * (1 - here / there)
        spread = self.eta * variance**0.5
        columns = (there**0.5, (1 - there - spread**2) ** 0.5, spread, (1 - there) ** 0.5)
        jumps = np.append(grid.times[1:] > grid.times[:-1], False).tolist()
        following = self._cumulative(np.append(grid.times[1:], grid.times[-1]))
        keep = following / there
        backs = zip((keep**0.5).tolist(), (1 - keep).clamp(min=0).sqrt().tolist(), strict=True)
        rows = [
            _Row(reading("epsilon", *level).x0, Mix(on_x0, on_y), up, Mix(on_x0, on_noise), back if jump else None)
            for level, jump, back, on_x0, on_y, up, on_noise in zip(
                self._levels(grid), jumps, backs, *(column.tolist() for column in columns), strict=True
            )
        ]
        return rows, [True] * len(rows)

    def initial_state(
        self, plan: Plan, original_image: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> RePaintState:
        """What is to be filled in; without it, everything is."""
        if (original_image is None) != (mask is None):
            raise InputError("original_image and mask belong together; give both, or neither to make a new picture")
        return RePaintState(original_image, mask)

    def draw_noise(
        self, plan: Plan, i: int, sample: torch.Tensor, generator: Any = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor | None:
        """Noise of the sample's shape, or (2, …) where the run then jumps back, which takes noise of its own."""
        noise = super().draw_noise(plan, i, sample, generator, dtype)
        if noise is None or plan.rows[i].back is None:
            return noise
        return torch.stack([noise, randn_tensor(sample.shape, generator, sample.device, noise.dtype)])

    def _advance(self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: Any) -> Advance:
        noise, fresh = (noise, None) if row.back is None else noise
        x0, _ = self._read(row, model_output, sample)
        previous = row.unknown(x0, model_output)
        if row.spread:
            previous = previous.add_(noise, alpha=row.spread)
        if state.mask is not None:
            previous = torch.lerp(previous, row.known(state.original_image, noise), state.mask)
        if fresh is not None:
            previous = (previous * row.back[0]).add_(fresh, alpha=row.back[1])
        return Advance(previous, state, x0)

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, original_image: Any = None,
        mask: Any = None, generator: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """One step downwards from `timestep`, keeping `original_image` where `mask` is 1."""
        run = self._run()
        i = self._locate(run, timestep)[1]
        self._step_index = i + 1
        row = run.rows[run.times.index(run.grid.times[i])]._replace(back=None)
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=model_output.dtype)
        result = self._advance(row, model_output, sample, self.initial_state(run, original_image, mask), noise)
        output = self._outcome(result)
        return output if return_dict else output.to_tuple()

    def undo_step(self, sample: torch.Tensor, timestep: Any, generator: Any = None) -> torch.Tensor:
        """`sample` with the noise of one step upwards from `timestep`, one training timestep at a time."""
        run = self._run()
        first = int(run.grid.times[self._locate(run, timestep)[1]])
        betas = self.betas[first : first + len(self) // run.grid.steps]
        for keep, spread in zip(((1 - betas) ** 0.5).tolist(), (betas**0.5).tolist(), strict=True):
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            sample = (sample * keep).add_(noise, alpha=spread)
        return sample
