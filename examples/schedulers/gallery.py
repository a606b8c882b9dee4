"""Every scheduler on the same model and the same seed, at 5, 10, 20 and 50 steps, as one picture.

    python examples/schedulers/gallery.py [--output schedulers.png] [NAME …]

The bundled Fashion-MNIST model belongs to one diffusion. Where a scheduler means another kind of network (flow
matching, EDM, consistency, …), the model's answer is translated into what such a network would say of the same noisy
picture, so that only the scheduler differs. Samplers for distilled networks (LCM, TCD, CM, SCM) show here what they do
with one that is not distilled. Two take a picture apart instead of making one: the inverse schedulers go from a picture
to its noise in as many steps, from which DDIM comes back in 50; RePaint keeps the left half of a picture and fills in
the other.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import safelight
from safelight import DDIMScheduler, DiffusionPipeline
from safelight.images import to_pil
from safelight.schedulers.base import Scheduler
from safelight.schedulers.spacing import sigma_to_t

STEPS = (5, 10, 20, 50)
LABELS = ("Sneaker", "Coat", "Bag")
SEED, ZOOM, MARGIN, TEXT = 7, 2, 6, 250
# What a plan needs beyond the number of steps.
PLANS: dict[str, dict[str, Any]] = {"SCMScheduler": {"intermediate_timesteps": None}}
SETTINGS: dict[str, dict[str, Any]] = {
    "UnCLIPScheduler": {"prediction_type": "sample"},
    "TCDScheduler": {"clip_sample": False},
    "CMStochasticIterativeScheduler": {"num_train_timesteps": 50},
    # The model's betas reach σ = 20,000, from where even steps along t are too long for a slope in σ.
    "HeunDiscreteScheduler": {"use_karras_sigmas": True},
    "KDPM2DiscreteScheduler": {"use_karras_sigmas": True},
    "KDPM2AncestralDiscreteScheduler": {"use_karras_sigmas": True},
}
INVERSE = ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler")


class Denoiser:
    """The bundled model as a function of a noisy picture and its noise level."""

    def __init__(self, pipe: DiffusionPipeline):
        self.unet, self.scheduler = pipe.unet, pipe.scheduler
        names = {name: int(key) for key, name in pipe.config["id2label"].items()}
        self.labels = torch.tensor([names[label] for label in LABELS])
        signal = pipe.scheduler.alphas_cumprod.double()
        self.sigmas = ((1 - signal) / signal).sqrt().numpy()

    def __call__(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """x₀ of x = α·x₀ + σ·ε, scaled to the α² + σ² = 1 that the model was trained with."""
        scale = float(np.hypot(alpha, sigma))
        ratio = sigma / alpha if alpha else self.sigmas[-1]
        t = float(sigma_to_t(np.array([ratio]), self.sigmas)[0])
        v = self.unet(x / scale, torch.tensor(t), class_labels=self.labels).sample
        return ((alpha * x / scale - sigma * v) / scale).clamp(-1, 1)


def build(name: str, pipe: DiffusionPipeline) -> Any:
    """The scheduler, with the model's betas where it has any."""
    cls, settings = getattr(safelight, name), SETTINGS.get(name, {})
    has_betas = "beta_schedule" in inspect.signature(cls).parameters
    return cls.from_config(pipe.scheduler.config, **settings) if has_betas else cls(**settings)


def run(scheduler: Any, plan: Any, denoiser: Denoiser, x: torch.Tensor, state: Any = None) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(SEED + k) for k in range(len(x))]
    for i, (alpha, sigma) in enumerate(plan.levels):
        y = scheduler.implied_output(plan, i, x, denoiser(x, alpha, sigma))
        noise = scheduler.draw_noise(plan, i, x, generators, torch.float32)
        x, state, _ = scheduler.advance(plan, i, y, x, state, noise)
    return x


def pictures(name: str, steps: int, pipe: DiffusionPipeline, denoiser: Denoiser) -> torch.Tensor:
    scheduler = build(name, pipe)
    plan = scheduler.plan(steps, **PLANS.get(name, {}))
    noise = [torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(SEED + k)) for k in range(len(LABELS))]
    first = torch.cat(noise)
    if name not in (*INVERSE, "RePaintScheduler"):
        return run(scheduler, plan, denoiser, first * plan.init_noise_sigma)
    ddim = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    original = run(ddim, ddim.plan(50), denoiser, first)
    if name in INVERSE:
        return run(ddim, ddim.plan(50), denoiser, run(scheduler, plan, denoiser, original))
    mask = torch.ones_like(original)
    mask[..., 14:] = 0
    return run(scheduler, plan, denoiser, first, scheduler.initial_state(plan, original, mask))


def sheet(names: list[str]) -> Image.Image:
    pipe = DiffusionPipeline.from_pretrained("fashion-mnist")
    denoiser, side = Denoiser(pipe), 28 * ZOOM
    cell = len(LABELS) * side + 4 * MARGIN
    image = Image.new("RGB", (TEXT + len(STEPS) * cell, (len(names) + 1) * (side + MARGIN)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for column, steps in enumerate(STEPS):
        draw.text((TEXT + column * cell, side // 2), f"{steps} steps", "black", font)
    for row, name in enumerate(names, 1):
        top = row * (side + MARGIN)
        draw.text((MARGIN, top + side // 2 - 8), name.removesuffix("Scheduler"), "black", font)
        for column, steps in enumerate(STEPS):
            left = TEXT + column * cell
            try:
                made = to_pil((pictures(name, steps, pipe, denoiser).clamp(-1, 1) + 1) / 2)
            except safelight.SafelightError as error:
                print(f"{name} in {steps} steps: {error}")
                draw.text((left, top + side // 2 - 8), "cannot", "gray", font)
                continue
            for k, picture in enumerate(made):
                image.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left + k * side, top))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these schedulers")
    parser.add_argument("--output", type=Path, default=Path("schedulers.png"))
    options = parser.parse_args()
    every = (name for name in safelight.__all__ if name.endswith("Scheduler"))
    names = options.names or [name for name in every if issubclass(getattr(safelight, name), Scheduler)]
    with torch.no_grad():
        sheet(names).save(options.output, optimize=True)
    print(f"saved {options.output}")


if __name__ == "__main__":
    main()
