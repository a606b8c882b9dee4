"""`safelight train …`: train a model from the command line."""

from __future__ import annotations

import argparse
import types
import typing
from dataclasses import MISSING, fields
from typing import Any

from ..training.recipes import Unconditional

# The options and their defaults come from the recipe; what each means is said here.
_HELP = {
    "data": "'fashion-mnist', or a folder of pictures (its subfolders, if any, are the classes)",
    "resolution": "size of the pictures in pixels",
    "channels": "3 for colour, 1 for grey",
    "mirror": "also train on mirror images",
    "classes": "use the classes of the data, if it has any",
    "block_out_channels": "width of each level of the UNet, highest resolution first, as in 64,128,256",
    "layers_per_block": "ResNet blocks per level",
    "attention_levels": "how many of the lowest levels attend (the middle always does)",
    "norm_num_groups": "groups of the normalisations; must divide every width",
    "dropout": "dropout in the ResNet blocks",
    "prediction_type": "what the network predicts: epsilon, sample or v_prediction",
    "beta_schedule": "noise schedule: linear, scaled_linear or squaredcos_cap_v2",
    "min_snr_gamma": "weight the loss by min(SNR, this)",
    "label_dropout": "share of labels replaced by 'no class', for guidance",
    "steps": "optimiser steps in all",
    "batch_size": "pictures per optimiser step",
    "accumulation": "micro-batches that a batch is cut into, to save memory",
    "parallel": "micro-batches computed at once, in threads of one core each",
    "learning_rate": "highest learning rate",
    "schedule": "learning-rate schedule: constant_with_warmup, linear, cosine, …",
    "warmup": "steps until the learning rate is reached",
    "weight_decay": "weight decay of AdamW",
    "max_grad_norm": "clip the gradient to this norm; 'none' for no clipping",
    "ema_decay": "decay of the weight average that is sampled and saved; 'none' for no average",
    "precision": "auto, float32 or bfloat16 (autocast)",
    "seed": "determines the whole run",
    "sample_steps": "denoising steps of the sample grids",
    "guidance_scale": "classifier-free guidance of the sample grids",
    "sample_every": "steps between sample grids",
    "checkpoint_every": "steps between checkpoints",
    "keep": "how many checkpoints stay",
    "save_dtype": "type of the weights in the saved pipeline",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the tasks and options of `safelight train`."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    unconditional = tasks.add_parser(
        "unconditional",
        help="a UNet on pictures, by class if they have classes",
        description="Train a UNet2DModel on pictures and save a DDIMPipeline. Ctrl-C saves; --resume continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    unconditional.add_argument("--output", required=True, metavar="FOLDER", help="where the run and its results go")
    unconditional.add_argument("--resume", action="store_true", help="continue the run in --output, as it was set up")
    _add_recipe_options(unconditional)


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    kinds = typing.get_type_hints(Unconditional)
    group = parser.add_argument_group("recipe", "options left out take the values that suit the data")
    for field in fields(Unconditional):
        default = "" if field.default is MISSING else f" (default: {_show(field.default)})"
        flag, help_text = f"--{field.name.replace('_', '-')}", _HELP[field.name] + default
        # Absent options must not appear at all: the recipe (a preset, or that of a resumed run) decides them.
        if kinds[field.name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help_text)
        else:
            parse = _parser_of(kinds[field.name])
            group.add_argument(
                flag, type=parse, default=argparse.SUPPRESS, metavar=parse.__name__.upper(), help=help_text
            )


def _parser_of(kind: Any) -> Any:
    """A function from a command-line string to a value of type `kind`; `argparse` shows its name."""
    if typing.get_origin(kind) is tuple:

        def integers(text: str) -> tuple[int, ...]:
            return tuple(int(part) for part in text.split(","))

        return integers
    if isinstance(kind, types.UnionType):
        plain = next(part for part in typing.get_args(kind) if part is not type(None))

        def number(text: str) -> Any:
            return None if text.lower() == "none" else plain(text)

        return number
    return kind


def _show(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()


def run(args: argparse.Namespace) -> int:
    """Train as `args` say; returns the exit status (130 after an interrupt)."""
    from ..errors import InputError
    from ..training.unconditional import UnconditionalRun

    names = [field.name for field in fields(Unconditional)]
    choices = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if args.resume:
        session = UnconditionalRun(Unconditional.read(args.output, **choices), args.output)
        session.resume()
    else:
        if "data" not in choices:
            raise InputError("say what to train on: --data fashion-mnist, or --data FOLDER")
        session = UnconditionalRun(Unconditional.for_data(**choices), args.output)
        session.start()
    if session.trainer.interrupted:
        print(f"stopped after step {session.trainer.step:,}; continue with --resume --output {args.output}")
        return 130
    print(f"saved {session.output / 'pipeline'}")
    return 0
