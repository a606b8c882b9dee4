"""Finding a model by what the user calls it, and the device to run it on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..bundled import bundled_models
from ..errors import InputError

DEFAULT_MODEL = "fashion-mnist"


def add_loading_arguments(parser: argparse._ActionsContainer) -> None:
    """The options that say where files come from, shared by the commands that read a model."""
    parser.add_argument(
        "--revision", metavar="NAME", default=argparse.SUPPRESS, help="branch, tag or commit on the Hub"
    )
    parser.add_argument("--variant", metavar="NAME", default=argparse.SUPPRESS, help="weights of this variant, as fp16")
    parser.add_argument("--cache-dir", metavar="FOLDER", help="cache to use instead of the Hub client's own")
    parser.add_argument("--local-files-only", action="store_true", help="use what is cached, touch no network")


def loading_options(args: argparse.Namespace) -> dict[str, Any]:
    """What those options say, as `from_pretrained` takes it."""
    given = {name: getattr(args, name, None) for name in ("revision", "variant", "cache_dir")}
    options = {name: value for name, value in given.items() if value is not None}
    return {**options, "local_files_only": True} if args.local_files_only else options


def locate(model: str) -> str:
    """A folder or file on disk, the name of a bundled model (as its folder), or else a repository id."""
    bundled = bundled_models()
    if Path(model).exists() or "/" in model:
        return model
    if model not in bundled:
        raise InputError(
            f"there is no model {model!r}: no such folder, and no bundled model of that name "
            f"({', '.join(bundled) or 'none is installed'}); a repository id looks like owner/name"
        )
    return str(bundled[model])


def pick_device(name: str) -> str:
    """The device called `name`; "auto" is the fastest one here."""
    import torch

    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError):
            cards = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
            here = ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]
            raise InputError(f"device is {name!r}, which is not here; usable: {', '.join(here)}") from None
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
