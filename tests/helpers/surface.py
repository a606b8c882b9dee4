"""The library's names beside diffusers', computed from both, for `docs/surface.md`.

`python -m tests.helpers.surface` rewrites what stands between the page's markers; the words around them are written by
hand.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import diffusers
from torch import nn

import safelight

from .tree import ROOT

PAGE = ROOT / "docs" / "surface.md"

# What will not come, and why. A pattern holds for names of the package, members of classes and names in modules.
LEFT_OUT = {
    "other runtimes and accelerators": r"Onnx|ONNX|onnx|(^|_)(npu|xla)_|NVIDIAModelOpt",
    "music notation and spectrograms of 2022": r"^(AudioDiffusionPipeline|Mel|MidiProcessor|T5FilmDecoder"
    r"|SpectrogramDiffusionPipeline)$",
    "code from a repository is never run": r"register_for_auto_class|^get_class_from_dynamic_module$",
    "machinery of its own": r"^(DummyObject|OptionalDependencyNotAvailable|requires_backends|HookRegistry"
    r"|extract_init_dict|get_config_dict|hf_device_map|reset_device_map|maybe_free_model_hooks|remove_all_hooks"
    r"|maybe_convert_prompt|prepare_extra_step_kwargs|text_encoder_name|unet_name|set_use_memory_efficient_attention_\w+"
    r"|deprecate|replace_example_docstring|is_(?!torch_|scipy_|transformers_available)\w+_(available|version)"
    r"|is_transformers_version|BACKENDS_MAPPING|EmptyTqdm|tqdm|xformers|[A-Z]|is_torch_\w+|TorchDeviceBackend|backend_\w+)$",
}
# Arguments that ours take among their keyword arguments.
TAKEN_ANYWAY = ("return_unused_kwargs",)
KINDS = ("pipelines", "modular_pipelines", "models", "schedulers", "guiders", "hooks", "quantizers", "others")
# Modules that scripts import from, and those in which the names of one kind of thing are found.
MODULES = (
    "configuration_utils",
    "image_processor",
    "models.attention_processor",
    "models.modeling_utils",
    "optimization",
    "schedulers.scheduling_utils",
    "training_utils",
    "utils",
    "utils.export_utils",
    "utils.loading_utils",
    "utils.logging",
    "utils.pil_utils",
    "utils.torch_utils",
)


def their_names() -> dict[str, set[str]]:
    """The public names of diffusers by kind, whatever optional packages are installed."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    ends = {"Pipeline": "pipelines", "Scheduler": "schedulers", "Config": "quantizers"}
    for place, names in diffusers._import_structure.items():
        kind = place.split(".")[0]
        for name in names:
            # Without their packages these are found in a module of placeholders.
            by_end = next((own for end, own in ends.items() if name.endswith(end)), "others")
            found[by_end if place.startswith("utils.dummy") else kind if kind in KINDS else "others"].add(name)
    known = set().union(*(found[kind] for kind in KINDS[:-1]))
    found["others"] -= known
    return found


def members(kind: type) -> set[str]:
    """The public attributes of a class, but for those of every torch module."""
    torch_has = set(dir(nn.Module)) if issubclass(kind, nn.Module) else set()
    return {name for name in dir(kind) if not name.startswith("_")} - torch_has


def shared_classes() -> list[str]:
    """The classes that both libraries export under one name."""
    both = set().union(*their_names().values()) & set(safelight.__all__)
    return sorted(name for name in both if inspect.isclass(getattr(safelight, name)))


def module_names(module: types.ModuleType) -> set[str]:
    """What a script could import from a module: not its own imports of modules, nor private names."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return set(listed)
    package = module.__name__.split(".")[0]
    own = {}
    for name, value in vars(module).items():
        home = getattr(value, "__module__", module.__name__)
        is_local = home == module.__name__ or (module.__name__ == f"{package}.utils" and home.startswith(package))
        if not (name.startswith("_") or isinstance(value, types.ModuleType)) and is_local:
            own[name] = value
    return {name for name, value in own.items() if not isinstance(value, str | bool | int | float | list | set)}


def reason(name: str) -> str | None:
    """Why `name` is left out for good, if it is."""
    return next((why for why, pattern in LEFT_OUT.items() if re.search(pattern, name)), None)


def split(theirs: Iterable[str], ours: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Their names as (here, not yet, left out)."""
    names, have = sorted(set(theirs)), set(ours)
    absent = [name for name in names if name not in have]
    return (
        [name for name in names if name in have],
        [name for name in absent if reason(name) is None],
        [name for name in absent if reason(name) is not None],
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def render_package() -> str:
    """The names that `from safelight import …` knows, by kind."""
    rows, absent = [], []
    for kind, names in their_names().items():
        here, not_yet, _ = split(names, safelight.__all__)
        label = kind.replace("_", " ")
        rows.append(f"| {label} | {_listed(here)} | {len(not_yet)} |")
        absent.append(f"**{label.capitalize()}** ({len(not_yet)}): {_listed(not_yet)}\n")
    table = "\n".join(["| Kind | Here | Not yet |", "|---|---|---|", *rows])
    return f'{table}\n\n<details markdown="1">\n<summary>The names that are not here yet</summary>\n\n' + "\n".join(
        [*absent, "</details>"]
    )


def pairs() -> Iterator[tuple[str, Any, Any, set[str]]]:
    """Every class and module that both have: (name, theirs, ours, the names of theirs that are told here).

    What all classes of a kind have is told once, at their base.
    """
    for name in shared_classes():
        theirs, ours = getattr(diffusers, name), getattr(safelight, name)
        told = set()
        for base in ("DiffusionPipeline", "ModelMixin", "SchedulerMixin", "ConfigMixin"):
            if base != name and issubclass(theirs, getattr(diffusers, base)):
                told |= members(getattr(diffusers, base))
        yield name, theirs, ours, members(theirs) - told
    for name in MODULES:
        theirs, ours = (importlib.import_module(f"{library}.{name}") for library in ("diffusers", "safelight"))
        imported = module_names(ours) & set(dir(theirs))
        yield f"safelight.{name}", theirs, ours, module_names(theirs) | imported


def render_members(modules: bool) -> str:
    """The members of classes, or the names in modules, that both have and that are not here yet."""
    lines = [f"| {'Module' if modules else 'Class'} | Here | Not yet |", "|---|---|---|"]
    for name, _, ours, told in pairs():
        if isinstance(ours, types.ModuleType) == modules:
            here, not_yet, _ = split(told, [one for one in told if hasattr(ours, one)])
            if here or not_yet:
                lines.append(f"| `{name}` | {_listed(here)} | {_listed(not_yet)} |")
    return "\n".join(lines)


def _arguments(function: Any) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in parameters if p.kind not in variadic and p.name != "self" and not p.name.startswith("_")}


def render_arguments() -> str:
    """The arguments of functions that both have which ours do not take, by argument."""
    missing: dict[str, list[str]] = {}
    for name, theirs, ours, told in pairs():
        called = {one: one for one in told if hasattr(ours, one)}
        if inspect.isclass(ours):
            called.update(
                {"__init__": name, **({"__call__": name} if name.endswith("Pipeline") else {"forward": name})}
            )
        for member, shown in called.items():
            here, there = (getattr(one, member, None) for one in (ours, theirs))
            if callable(here) and callable(there):
                label = shown if shown == name or not inspect.isclass(ours) else f"{name}.{member}"
                for argument in _arguments(there) - _arguments(here) - set(TAKEN_ANYWAY):
                    missing.setdefault(argument, []).append(label)
    rows = [f"| `{argument}` | {_listed(sorted(missing[argument]))} |" for argument in sorted(missing)]
    return "\n".join(["| Argument | Of |", "|---|---|", *rows])


def render_left_out() -> str:
    """What will not come: reason, then names."""
    everything = set().union(*their_names().values()) - set(safelight.__all__)
    for _, _, ours, told in pairs():
        everything |= {name for name in told if not hasattr(ours, name)}
    gone = [name for name in sorted(everything) if reason(name) is not None]
    rows = [f"| {why} | {_listed(name for name in gone if reason(name) == why)} |" for why in LEFT_OUT]
    return "\n".join(["| Why | Names |", "|---|---|", *rows])


def rendered(page: str) -> str:
    """`page` with what stands between its markers computed afresh."""
    parts = {
        "package": render_package,
        "classes": lambda: render_members(modules=False),
        "modules": lambda: render_members(modules=True),
        "arguments": render_arguments,
        "left out": render_left_out,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, render in parts.items():
            start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
            before, _, rest = page.partition(start)
            _, _, after = rest.partition(end)
            page = f"{before}{start}\n{render()}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
