"""One sampling run as a value: everything that changes while a request is sampled."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import NonFiniteError
from ..randomness import randn_tensor
from ..schedulers.base import Plan, Scheduler
from .guidance import Guidance

Tensors = dict[str, torch.Tensor]


@dataclass(eq=False)
class Trajectory:
    """The state of one request between `prepare` and `decode`.

    `sample` is x_t at evaluation `index` of `plan`, (batch, channels, height, width). `conditioning` holds the
    tensors that the denoiser takes beside x_t and t, batch first; `negative` those of the negative pass where there
    is guidance. `generator` gives the noise of stochastic steps, `forward_options` reach the network as they are, and
    `settings` is what `decode` needs to know. Nothing here is shared with another run.
    """

    scheduler: Scheduler
    plan: Plan
    sample: torch.Tensor
    conditioning: Tensors = field(default_factory=dict)
    negative: Tensors | None = None
    guidance: Guidance = Guidance()  # noqa: RUF009 (frozen)
    generator: torch.Generator | list[torch.Generator] | None = None
    forward_options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    state: Any = None
    pred_original_sample: torch.Tensor | None = None
    interrupt: bool = False

    def __post_init__(self) -> None:
        if self.state is None:
            self.state = self.scheduler.initial_state(self.plan)

    # What scripts' callbacks read and set on "the pipeline" (see `denoise.RunView`).
    @property
    def guidance_scale(self) -> float:
        return self.guidance.scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        self.guidance = replace(self.guidance, scale=scale)

    @property
    def guidance_rescale(self) -> float:
        return self.guidance.rescale

    @guidance_rescale.setter
    def guidance_rescale(self, rescale: float) -> None:
        self.guidance = replace(self.guidance, rescale=rescale)

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.guidance.active and self.negative is not None

    @property
    def num_timesteps(self) -> int:
        return len(self.plan)

    @property
    def clip_skip(self) -> int | None:
        return self.settings.get("clip_skip")

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        return self.forward_options.get("cross_attention_kwargs")

    @cross_attention_kwargs.setter
    def cross_attention_kwargs(self, value: dict[str, Any] | None) -> None:
        self.forward_options = {**self.forward_options, "cross_attention_kwargs": value}

    @property
    def finished(self) -> bool:
        return self.interrupt or self.index >= len(self.plan)

    @property
    def passes(self) -> list[Tensors]:
        """The conditionings of one step's forward: negative first, as the field stacks them."""
        if self.do_classifier_free_guidance:
            assert self.negative is not None
            return [self.negative, self.conditioning]
        return [self.conditioning]

    def network_input(self) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
        """Rows for the denoiser: x_t as it expects it, t (0-d), and the conditioning, all passes stacked."""
        scaled = self.scheduler.scale_input(self.plan, self.index, self.sample)
        timestep = self.plan.timesteps[self.index]
        passes = self.passes
        if len(passes) == 1:
            return scaled, timestep, passes[0]
        stacked = {name: torch.cat([one[name] for one in passes]) for name in passes[0]}
        return torch.cat([scaled] * len(passes)), timestep, stacked

    def advance(self, prediction: torch.Tensor, network: str) -> None:
        """Take one step with the denoiser's output for all passes; `network` names it in errors."""
        if self.do_classifier_free_guidance:
            prediction = self.guidance.combine(*prediction.chunk(2))
        noise = None
        if self.plan.needs_noise[self.index]:
            noise = randn_tensor(
                self.sample.shape, generator=self.generator, device=self.sample.device, dtype=prediction.dtype
            )
        result = self.scheduler.advance(self.plan, self.index, prediction, self.sample, self.state, noise)
        self._check_finite(result.sample, prediction, network)
        self.sample, self.state, self.pred_original_sample = result
        self.index += 1

    def _check_finite(self, sample: torch.Tensor, prediction: torch.Tensor, network: str) -> None:
        # On a GPU reading a flag would wait for the device, so there `decode` looks at the picture instead.
        if sample.device.type != "cpu" or torch.isfinite(sample).all():
            return
        culprit = type(self.scheduler).__name__ if torch.isfinite(prediction).all() else network
        step, total = self.index + 1, len(self.plan)
        advice = (
            "load it with dtype=torch.float32, or check its weights" if culprit == network else "use another scheduler"
        )
        raise NonFiniteError(f"{culprit} gave NaN or infinity at step {step} of {total}; {advice}")
