"""`safelight generate …`: pictures from a prompt or a class name, or again from a picture's own settings."""

from __future__ import annotations

import argparse
import inspect
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import InputError, check_choice
from .models import DEFAULT_MODEL, add_loading_arguments, loading_options, locate, pick_device

if TYPE_CHECKING:
    from ..pipelines.denoise import DenoisingPipeline
    from ..pipelines.film import Film

# A picture's settings under the names that they have here and in its PNG -> the pipelines' names for them. Those of the
# flags are the same, with hyphens.
_REQUEST = {
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "height": "height",
    "width": "width",
    "guidance_scale": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "eta": "eta",
    "clip_skip": "clip_skip",
}
_LOADING = ("model", "revision", "variant", "dtype", "safety_checker")
_SETTINGS = (*_LOADING, "scheduler", "prompt", "seed", *_REQUEST)
# Not a setting: what made the picture, beside which the same settings may round differently.
_MADE_WITH = "made_with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of `safelight generate`.

    Those that a picture's settings can give have no default here, so that the ones typed can be told from the rest.
    """
    parser.description = (
        "Make pictures. Every PNG keeps its settings: --from picture.png makes it again, bit for bit on the same "
        "machine, and further options change what they say."
    )
    parser.add_argument(
        "prompt", nargs="*", default=argparse.SUPPRESS, help="what to show; for a model of classes, names (a,b,c)"
    )
    setting = parser.add_argument_group("the picture")

    def add(flag: str, kind: Any, metavar: str, text: str, *short: str) -> None:
        setting.add_argument(flag, *short, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)

    setting.add_argument("--from", dest="source", metavar="PICTURE", help="start from the settings in this PNG")
    add("--model", str, "MODEL", f"folder, repository id or bundled model (default: {DEFAULT_MODEL})", "-m")
    add("--scheduler", str, "NAME", "sampler, as EulerDiscreteScheduler or euler (default: the model's own)")
    add("--steps", int, "N", "denoising steps (default: the pipeline's)")
    add("--seed", int, "N", "seed of the first picture, one more for each further one (default: a new one)")
    add("--negative", str, "TEXT", "what not to show")
    add("--guidance-scale", float, "W", "how closely to follow the prompt; 1 is no guidance")
    add("--guidance-rescale", float, "PHI", "counter overexposure from guidance, 0 to 1")
    add("--height", int, "PIXELS", "default: the model's own size")
    add("--width", int, "PIXELS", "default: the model's own size")
    add("--eta", float, "ETA", "noise added in each DDIM step, 0 to 1")
    add("--clip-skip", int, "N", "leave out CLIP's last layers")
    setting.add_argument("--count", "-n", type=int, default=1, metavar="N", help="pictures of each prompt (default: 1)")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        "-o",
        default="outputs",
        metavar="PATH",
        help="name.png, a folder, or a pattern with {prompt}, {seed}, {index} (default: outputs/)",
    )
    output.add_argument("--film-strip", action="store_true", help="also write frames from noise to picture, as one PNG")
    output.add_argument("--gif", action="store_true", help="also write them as a GIF")
    output.add_argument(
        "--frames", type=int, default=8, metavar="N", help="frames of the strip and the GIF (default: 8)"
    )
    output.add_argument("--quiet", "-q", action="store_true", help="no progress bars and no notes")

    loading = parser.add_argument_group("loading")
    add_loading_arguments(loading)
    loading.add_argument(
        "--dtype", default=argparse.SUPPRESS, help="auto (what the machine is fast at), float32, float16, bfloat16"
    )
    loading.add_argument("--device", default="auto", help="auto, cpu, cuda, mps … (default: auto)")
    loading.add_argument(
        "--no-safety-checker", dest="safety_checker", action="store_false", default=argparse.SUPPRESS,
        help="do not load the model's safety checker",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Make the pictures that `args` ask for, print their paths, and return the exit status."""
    from ..images import save_png
    from .destination import Destination

    settings = _settings(args)
    if args.count < 1:
        raise InputError(f"count is {args.count}; at least one picture is needed")
    pipeline = _load(settings, args)
    seed = settings.pop("seed", None)
    first_seed = secrets.randbelow(2**32) if seed is None else seed
    prompts = [prompt for prompt in _prompts(pipeline, settings.pop("prompt", None)) for _ in range(args.count)]
    pictures = [(prompt, first_seed + k) for k, prompt in enumerate(prompts)]
    labels = [prompt if prompt is not None else Path(settings["model"]).name for prompt in prompts]
    destination = Destination(args.output, [(label, own) for label, (_, own) in zip(labels, pictures, strict=True)])
    scheduler = _scheduler(settings.get("scheduler"), pipeline.scheduler)
    request = {**_request(pipeline, settings), **({} if scheduler is None else {"scheduler": scheduler})}
    note = _note(args.quiet)
    made_with = _made_with(pipeline)
    _compare(settings.pop(_MADE_WITH, None), made_with, note)

    films: list[Film] = []
    for k, (prompt, seed) in enumerate(pictures):
        pipeline.set_progress_bar_config(
            disable=args.quiet or not sys.stderr.isatty(), leave=False, desc=f"{k + 1}/{len(pictures)} {labels[k]}"[:40]
        )
        named = {} if prompt is None else {_prompt_name(pipeline): [prompt]}
        own = {**request, **named, "seed": seed}
        if args.film_strip or args.gif:
            films.append(pipeline.film(frames=args.frames, **own))
            result = films[-1].result
        else:
            result = pipeline(**own)
        image = result.images[0]
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            note(f"picture {k + 1} was blacked out by the model's safety checker")
        kept = _complete(pipeline, settings, scheduler, image, prompt, seed)
        kept[_MADE_WITH] = made_with
        path = destination.picture(k, kept)
        save_png(image, path, kept)
        print(path, flush=True)
    if films:
        from ..pipelines.film import together

        film = together(films)
        for suffix in ([".png"] if args.film_strip else []) + ([".gif"] if args.gif else []):
            print(film.save(destination.film(suffix)))
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the picture given with --from, and over them those typed."""
    typed = {name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)}
    if not typed.get("prompt"):
        typed.pop("prompt", None)
    stored: dict[str, Any] = {}
    if args.source is not None:
        from ..images import read_settings

        stored = read_settings(args.source)
        if not isinstance(stored.get("model", ""), str):
            raise InputError(f"the settings in {args.source!r} name the model {stored['model']!r}; a string is needed")
        for name in stored:
            check_choice(f"a setting in {args.source!r}", name, (*_SETTINGS, _MADE_WITH), InputError)
    if "model" in typed:
        stored = {name: value for name, value in stored.items() if name not in ("revision", "variant")}
    return {"model": DEFAULT_MODEL, "dtype": "auto", **stored, **typed}


def _load(settings: Mapping[str, Any], args: argparse.Namespace) -> DenoisingPipeline:
    from ..pipelines.base import DiffusionPipeline
    from ..pipelines.denoise import DenoisingPipeline

    options = {name: settings[name] for name in ("revision", "variant") if settings.get(name) is not None}
    if not settings.get("safety_checker", True):
        options["safety_checker"] = None
    pipeline = DiffusionPipeline.from_pretrained(
        locate(settings["model"]),
        **{**loading_options(args), **options},
        dtype=settings["dtype"],
        device=pick_device(args.device),
    )
    if not isinstance(pipeline, DenoisingPipeline):
        raise InputError(f"{settings['model']!r} is a {type(pipeline).__name__}, which makes no pictures from noise")
    return pipeline


def _parameters(pipeline: DenoisingPipeline) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(pipeline.prepare).parameters


def _prompt_name(pipeline: DenoisingPipeline) -> str:
    return "prompt" if "prompt" in _parameters(pipeline) else "class_labels"


def _prompts(pipeline: DenoisingPipeline, given: Any) -> list[Any]:
    """The prompt, or class name or number, of each picture; None where the model takes neither."""
    given = [given] if isinstance(given, str | int) else given
    if _prompt_name(pipeline) == "prompt":
        if not given:
            raise InputError('this model needs a prompt: safelight generate "a photo of a cat"')
        return list(given)
    classes = getattr(pipeline, "unet").config.get("num_class_embeds")  # noqa: B009
    if classes is None:
        if given:
            raise InputError(f"{type(pipeline).__name__} takes no prompt, but {given[0]!r} is given")
        return [None]
    names = {int(key): name for key, name in (pipeline.config.get("id2label") or {}).items()}
    if not given:
        return [names[key] for key in sorted(names)] or list(range(classes))
    words = [part.strip() for word in given for part in str(word).split(",") if part.strip()]
    labels = [int(word) if word.isdecimal() else word for word in words]
    pipeline._label_ids(labels)  # type: ignore[attr-defined]  # a misspelt name is said before the first picture
    return labels


def _scheduler(name: Any, own: Any) -> Any:
    """The scheduler called `name` with the config of the model's own; None for the model's own itself.

    Names are those of the classes; case, "Scheduler", "Discrete" and "Multistep" may be left out.
    """
    import safelight

    if name is None:
        return None
    known = [cls for cls in safelight.__all__ if cls.endswith("Scheduler")]
    short = {cls.lower(): cls for cls in known}
    for tail in ("scheduler", "discretescheduler", "multistepscheduler"):
        short.update({cls.lower().removesuffix(tail): cls for cls in known})
    check_choice("scheduler", name if name in known else str(name).lower(), [*known, *short], InputError)
    cls = name if name in known else short[str(name).lower()]
    return None if cls == type(own).__name__ else getattr(safelight, cls).from_config(own.config)


def _request(pipeline: DenoisingPipeline, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as arguments of this pipeline; one that it does not take is an error."""
    request = {}
    for name, theirs in _REQUEST.items():
        if settings.get(name) is None:
            continue
        if theirs not in _parameters(pipeline):
            flags = [f"--{own.replace('_', '-')}" for own, value in _REQUEST.items() if value in _parameters(pipeline)]
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{type(pipeline).__name__} does not take {flag}; it takes {', '.join(flags)}")
        request[theirs] = settings[name]
    return request


def _complete(
    pipeline: DenoisingPipeline, settings: Mapping[str, Any], scheduler: Any, image: Any, prompt: Any, seed: int
) -> dict[str, Any]:
    """Everything that the picture depends on, defaults included, so that no later default changes it."""
    parameters = _parameters(pipeline)
    defaults = {name: parameters[theirs].default for name, theirs in _REQUEST.items() if theirs in parameters}
    size = {"height": image.height, "width": image.width} if "height" in parameters else {}
    model = settings["model"]
    complete = {
        **{name: value for name, value in defaults.items() if value is not None},
        **size,
        **settings,
        "model": str(Path(model).resolve()) if Path(model).exists() else model,
        "scheduler": type(pipeline.scheduler if scheduler is None else scheduler).__name__,
        "seed": seed,
    }
    return complete if prompt is None else {**complete, "prompt": prompt}


def _made_with(pipeline: DenoisingPipeline) -> dict[str, Any]:
    import torch

    device = pipeline.device
    return {
        "safelight": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _compare(then: Any, now: Mapping[str, Any], note: Any) -> None:
    """Say where the picture was made with something else than it is made with now."""
    if not isinstance(then, Mapping):
        return
    changed = [f"{name} {then.get(name)} (here {now[name]})" for name in now if then.get(name) != now[name]]
    if changed:
        note(f"the picture was made with {', '.join(changed)}; it may differ in rounding")


def _note(quiet: bool) -> Any:
    return (lambda text: None) if quiet else (lambda text: print(f"safelight: {text}", file=sys.stderr))
