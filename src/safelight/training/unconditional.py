"""The unconditional recipe at work: a model, a noise schedule, data and a trainer, and the pipeline that comes out."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..configuration import write_json
from ..errors import ConfigError, InputError
from ..images import make_image_grid
from ..models.unet_2d import UNet2DModel
from ..pipelines.unconditional import DDIMPipeline
from ..schedulers.ddim import DDIMScheduler
from . import checkpoints
from .data import FashionMNIST, ImageFolder, Pictures
from .draws import seed_for
from .hooks import Checkpoints, MetricsLog, Progress, SampleGrids
from .objectives import DenoisingObjective
from .recipes import Unconditional
from .trainer import Hook, Trainer, TrainingSettings

if TYPE_CHECKING:
    from PIL.Image import Image


def load_data(recipe: Unconditional, split: str = "train") -> Pictures:
    if recipe.data == "fashion-mnist":
        if (recipe.resolution, recipe.channels, recipe.mirror) != (28, 1, False):
            raise ConfigError(
                "fashion-mnist is 28 pixels, 1 channel, not mirrored; leave resolution, channels and mirror"
            )
        return FashionMNIST(split)
    return ImageFolder(recipe.data, recipe.resolution, recipe.channels, recipe.mirror)


def build_model(recipe: Unconditional, classes: int) -> UNet2DModel:
    """The network, with seeded initial weights; `classes` = 0 for none."""
    levels, attending = len(recipe.block_out_channels), recipe.attention_levels
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for(recipe.seed, "initial weights", 0))
        return UNet2DModel(
            sample_size=recipe.resolution,
            in_channels=recipe.channels,
            out_channels=recipe.channels,
            block_out_channels=recipe.block_out_channels,
            layers_per_block=recipe.layers_per_block,
            down_block_types=("DownBlock2D",) * (levels - attending) + ("AttnDownBlock2D",) * attending,
            up_block_types=("AttnUpBlock2D",) * attending + ("UpBlock2D",) * (levels - attending),
            attention_head_dim=min(32, recipe.block_out_channels[-1]),
            norm_num_groups=recipe.norm_num_groups,
            dropout=recipe.dropout,
            num_class_embeds=classes + bool(recipe.label_dropout) if classes else None,
        )


def build_scheduler(recipe: Unconditional) -> DDIMScheduler:
    """The noise schedule, for training and for sampling alike."""
    return DDIMScheduler(
        beta_schedule=recipe.beta_schedule,
        prediction_type=recipe.prediction_type,
        timestep_spacing="trailing",  # few steps start at the noisiest timestep only so
        clip_sample=True,
    )


class UnconditionalRun:
    """A run of the recipe in folder `output`, and what it leaves there.

    `recipe.json`, `metrics.jsonl`, `checkpoints/`, `samples/`, and `pipeline/` for `DDIMPipeline.from_pretrained`.
    """

    def __init__(self, recipe: Unconditional, output: str | os.PathLike, hooks: tuple[Hook, ...] | None = None):
        self.recipe, self.output = recipe, Path(output)
        self.data = load_data(recipe)
        self.class_names = self.data.class_names if recipe.classes else []
        model = build_model(recipe, len(self.class_names))
        self.scheduler = build_scheduler(recipe)
        objective = DenoisingObjective(
            self.scheduler,
            min_snr_gamma=recipe.min_snr_gamma,
            label_dropout=recipe.label_dropout if self.class_names else 0.0,
            null_label=len(self.class_names) or None,
            use_labels=bool(self.class_names),
        )
        names = {field.name for field in fields(TrainingSettings)} & {field.name for field in fields(recipe)}
        settings = TrainingSettings(**{name: getattr(recipe, name) for name in names})
        usual: tuple[Hook, ...] = (
            Progress(),
            MetricsLog(self.output / "metrics.jsonl"),
            Checkpoints(self.output / "checkpoints", recipe.checkpoint_every, recipe.keep),
            SampleGrids(self.output / "samples", self.sample_grid, recipe.sample_every),
        )
        self.trainer = Trainer(model, objective, self.data, settings, hooks=usual if hooks is None else hooks)

    def start(self) -> None:
        """Train from the beginning; raises `InputError` if there are checkpoints of another run in the folder."""
        if checkpoints.found(self.output / "checkpoints"):
            raise InputError(f"{str(self.output)!r} holds a run already; resume it, or name another folder")
        self._train()

    def resume(self) -> None:
        """Continue from the newest checkpoint in the folder."""
        self.trainer.load_checkpoint(checkpoints.newest(self.output / "checkpoints"))
        self._train()

    def _train(self) -> None:
        write_json(self.output / "recipe.json", asdict(self.recipe))
        self.trainer.run()
        self.save_pipeline(self.output / "pipeline")

    def pipeline(self, model: Any) -> DDIMPipeline:
        labels = {str(number): name for number, name in enumerate(self.class_names)}
        pipeline = DDIMPipeline(unet=model, scheduler=self.scheduler, id2label=labels or None)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save_pipeline(self, folder: str | os.PathLike) -> None:
        """Write the averaged weights as a pipeline repository."""
        with self.trainer.averaged() as model:
            shipped = UNet2DModel.from_config(cast(UNet2DModel, model).config).to(
                getattr(torch, self.recipe.save_dtype)
            )
            shipped.load_state_dict(model.state_dict())
            self.pipeline(shipped).save_pretrained(folder)

    def sample_grid(self, model: Any, rows: int = 4) -> Image:
        """`rows` pictures of each class (columns are classes), or a square of 4 × `rows`; the same seeds every time."""
        columns = len(self.class_names) or 4
        asked: dict[str, Any] = {"batch_size": rows * columns}
        if self.class_names:
            asked = {"class_labels": [*range(columns)] * rows, "guidance_scale": self.recipe.guidance_scale}
        with torch.autocast(self.trainer.device.type, dtype=torch.bfloat16, enabled=self.trainer.autocast):
            images = self.pipeline(model)(
                num_inference_steps=self.recipe.sample_steps, seed=self.recipe.seed, **asked
            ).images
        return make_image_grid(images, rows=rows, cols=columns)
