"""What an import may cost: nothing for the package, torch and little else for a class."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

import safelight

from ..helpers.tree import python_files, shown

HEAVY = {
    "accelerate",
    "datasets",
    "diffusers",
    "IPython",
    "matplotlib",
    "scipy",
    "tensorboard",
    "torchvision",
    "transformers",
}
# Needed by those who load files, not by those who import a class.
LATE = {"huggingface_hub", "httpx", "requests"}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in a fresh process after `statement`."""
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(n for n in sys.modules if '.' not in n)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_costs_nothing() -> None:
    assert not loaded_by("import safelight") & (HEAVY | LATE | {"torch", "numpy", "PIL"})


def test_importing_a_pipeline_costs_torch() -> None:
    ours, torch_alone = loaded_by("from safelight import StableDiffusionPipeline"), loaded_by("import torch")
    assert "torch" in ours
    assert not (ours - torch_alone) & (HEAVY | LATE)


def test_no_module_needs_an_optional_package_at_import() -> None:
    every = "import importlib, pkgutil, safelight\n" + (
        "for m in pkgutil.walk_packages(safelight.__path__, 'safelight.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)"
    )
    assert not (loaded_by(every) - loaded_by("import torch")) & HEAVY


@pytest.mark.parametrize("name", safelight.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(safelight, name).__doc__, f"{name} has no docstring"


def _imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names.add(ast.unparse(node.args[0]).strip("'\""))
    return {name.split(".")[0] for name in names}


def test_the_package_never_imports_what_it_replaces() -> None:
    users = [
        shown(path) for path in python_files("src") if "diffusers" in _imported(ast.parse(path.read_text("utf-8")))
    ]
    assert not users
    assert "diffusers" in _imported(ast.parse("def f():\n    importlib.import_module('diffusers.utils')"))
