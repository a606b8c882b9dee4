"""RePaint: inpainting with a network that was not trained for it (Lugmayr et al. 2022, arXiv:2201.09865)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..configuration import register_to_config
from ..errors import InputError
from ..randomness import randn_tensor
from .base import Advance, Grid, Plan, SchedulerOutput
from .ddim import DDIMSteps
from .prediction import Mix, reading

RePaintSchedulerOutput = SchedulerOutput


class _Climb(NamedTuple):
    """The way back up: the factors of x, and of each draw of noise in turn."""

    keep: float
    draws: tuple[float, ...]

    def noise(self, like: torch.Tensor, generator: Any) -> torch.Tensor:
        """The draws together."""
        total = torch.zeros_like(like)
        for factor in self.draws:
            total.add_(randn_tensor(like.shape, generator, like.device, like.dtype), alpha=factor)
        return total


class _Row(NamedTuple):
    x0: Mix
    unknown: Any  # the row of DDIM's step
    known: Mix  # of the picture and the noise
    back: _Climb | None  # where the run goes back after the step


class RePaintState(NamedTuple):
    """What is to be filled in: a picture, and a mask that is 1 where it is kept; both broadcast to the sample."""

    original_image: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class RePaintScheduler(DDIMSteps):
    """Steps x ← m·(√ᾱ'·x_known + √(1 − ᾱ')·z) + (1 − m)·(DDIM's step with η and the same z) (eq. 8).

    After every `jump_length` steps the run goes back by as many, adding noise, and takes them again, `jump_n_sample`
    times in all (sec. 4.2): what is filled in so comes to fit what is known. `timesteps` shows both ways, as scripts
    want it, which call `step` downwards and `undo_step` upwards. A plan has the steps downwards alone, and goes back
    at their end; `initial_state` takes the picture and the mask, and `draw_noise` gives the noise of both, stacked.
    Timetable option: `both_ways`, a plan like `timesteps`. `eta` may be changed as an attribute, as an entry of the
    config.

    One climb of s training timesteps from t − s takes the β from t to t + s − 1 in the reference, which is more noise
    than t has; `corrected` takes those up to t, in one draw.
    """

    timetable_options: ClassVar = {"jump_length": 10, "jump_n_sample": 10, "both_ways": False}
    custom = ()
    _compatibles = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", eta: float = 0.0, trained_betas: Any = None, clip_sample: bool = True,
    ):  # fmt: skip
        self._set_up()
        self.one, self.final_alpha_cumprod = torch.tensor(1.0), torch.tensor(1.0)

    @property
    def _settings(self) -> dict[str, Any]:
        return {**super()._settings, "clip_sample_range": 1.0}

    @property
    def eta(self) -> float:
        """How much of the noise is fresh, in [0, 1]."""
        return self.config["eta"]

    @eta.setter
    def eta(self, value: float) -> None:
        self.register_to_config(eta=value)

    def set_timesteps(
        self, num_inference_steps: int, jump_length: int = 10, jump_n_sample: int = 10, device: Any = None,
        corrected: bool = False,
    ) -> None:  # fmt: skip
        """Begin a new run with the timetable that `plan` makes of these arguments, `both_ways`."""
        shape = {"jump_length": jump_length, "jump_n_sample": jump_n_sample, "corrected": corrected}
        super().set_timesteps(num_inference_steps, device, both_ways=True, **shape)

    def _grid(
        self, steps: int, corrected: bool, jump_length: int = 10, jump_n_sample: int = 10, both_ways: bool = False
    ) -> Grid:
        for name, value in (("jump_length", jump_length), ("jump_n_sample", jump_n_sample)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; a whole number of at least 1 is needed")
        steps = min(steps, len(self))
        left = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_n_sample - 1)
        places, t = [], steps - 1
        while t >= 0:
            places.append(t)
            if left.get(t):
                left[t] -= 1
                places += range(t + 1, t + jump_length + 1) if both_ways else ()
                t += jump_length
            t -= 1
        return Grid(np.array(places) * (len(self) // steps), steps, exact=not both_ways, corrected=corrected)

    def _rows(self, grid: Grid) -> tuple[list[_Row], list[bool]]:
        stride, times = len(self) // grid.steps, grid.times
        here, there = self._cumulative(times), self._cumulative(times - stride, self.final_alpha_cumprod)
        readings = [reading("epsilon", *level) for level in self._levels(grid)]
        backs = [
            self._climb(grid, time, (following - time) // stride + 1) if grid.exact and following >= time else None
            for time, following in zip(times.tolist(), [*times[1:].tolist(), -1], strict=True)
        ]
        known = map(Mix, (there**0.5).tolist(), ((1 - there) ** 0.5).tolist())
        steps = self._steps(readings, here, there, self.config["eta"])
        rows = [_Row(step.x0, step, keep, back) for step, keep, back in zip(steps, known, backs, strict=True)]
        return rows, [True] * len(rows)

    def _climb(self, grid: Grid, time: int, strides: int) -> _Climb:
        """The way up by `strides` from where the step at `time` ended."""
        stride = len(self) // grid.steps
        if grid.corrected:
            low, high = self._cumulative(np.array([time - stride, time + (strides - 1) * stride]), 1.0).tolist()
            return _Climb((high / low) ** 0.5, ((1 - high / low) ** 0.5,))
        betas = self.betas[time : time + strides * stride].cpu()
        # Rounded as in the reference: there are thousands of them in a run.
        keep, draw = ((1 - betas) ** 0.5).double(), (betas**0.5).double()
        kept = torch.cumprod(torch.cat([keep.new_ones(1), keep.flip(0)]), 0).flip(0)  # from each draw to the end
        return _Climb(float(kept[0]), tuple((draw * kept[1:]).tolist()))

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
        """Normal noise of the sample's shape; (2, …) where the run then goes back, with that of the way, as it is."""
        noise, back = super().draw_noise(plan, i, sample, generator, dtype), self._row(plan, i).back
        return noise if noise is None or back is None else torch.stack([noise, back.noise(noise, generator)])

    def _advance(self, row: Any, model_output: torch.Tensor, sample: torch.Tensor, state: Any, noise: Any) -> Advance:
        back = None
        if row.back is not None:
            if noise.shape != (2, *sample.shape):
                raise InputError(f"noise has shape {tuple(noise.shape)}; {(2, *sample.shape)} is needed to go back")
            noise, back = noise
        previous, _, x0 = super()._advance(row.unknown, model_output, sample, None, noise)
        if state.mask is not None:
            original, mask = (one.to(previous) for one in state)
            known = torch.add(noise * row.known.on_y, original, alpha=row.known.on_x)
            previous = torch.lerp(previous, known, mask)
        if back is not None:
            previous = torch.add(back, previous, alpha=row.back.keep)
        return Advance(previous, state, x0)

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, original_image: Any = None,
        mask: Any = None, generator: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """One step downwards from `timestep`, keeping `original_image` where `mask` is 1."""
        plan, i = self._locate(self._run(), timestep)
        self._step_index = i + 1
        noise = self.draw_noise(plan, i, sample, generator, getattr(model_output, "dtype", None))
        state = self.initial_state(plan, original_image, mask)
        output = self._outcome(self.advance(plan, i, model_output, sample, state, noise))
        return output if return_dict else output.to_tuple()

    def undo_step(self, sample: torch.Tensor, timestep: Any, generator: Any = None) -> torch.Tensor:
        """`sample`, as the step at `timestep` left it, with the noise of that step again."""
        run = self._run()
        plan, i = self._locate(run, timestep)
        climb = self._climb(run.grid, int(plan.times[i]), 1)
        return climb.noise(sample, generator).add_(sample, alpha=climb.keep)
