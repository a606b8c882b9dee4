"""The page on the surface tells the truth: what it says is here imports, and what it says is not, is not."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

import pytest

import safelight

from ..helpers import surface

TEXT = surface.PAGE.read_text(encoding="utf-8")


def section(name: str) -> str:
    return TEXT.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def rows(name: str) -> Iterator[list[str]]:
    for line in section(name).splitlines():
        if line.startswith("| ") and not line.startswith(("| Kind", "| Class", "| Module", "| Argument", "| Why")):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def owners() -> Iterator[tuple[str, list[str], list[str]]]:
    """Of each class and module on the page: where it is, what is said to be there, and what not yet."""
    for kind in ("classes", "modules"):
        for owner, here, absent in rows(kind):
            yield owner.strip("`"), names(here), names(absent)


def test_the_page_is_what_both_libraries_have():
    expected = surface.rendered(TEXT)
    assert expected == TEXT, "names have come or gone: run `python -m tests.helpers.surface` and look at the difference"


def test_names_of_the_package():
    here = [name for row in rows("package") for name in names(row[1])]
    assert len(here) > 10
    assert all(getattr(safelight, name) is not None for name in here)
    absent = set(names(section("package").split("<summary>")[1]))
    assert len(absent) > 500
    assert not absent & set(safelight.__all__)
    everything = set().union(*surface.their_names().values())
    assert everything - set(here) - absent == {name for name in everything if surface.reason(name)} - set(here)


@pytest.mark.parametrize(("owner", "here", "absent"), [pytest.param(*each, id=each[0]) for each in owners()])
def test_names_of_classes_and_modules(owner, here, absent):
    thing = importlib.import_module(owner) if owner.startswith("safelight.") else getattr(safelight, owner)
    assert [name for name in here if not hasattr(thing, name)] == []
    assert [name for name in absent if hasattr(thing, name)] == []


def test_what_only_this_library_has():
    pipeline = safelight.StableDiffusionPipeline
    for name in ("prepare", "step", "decode", "stream", "film"):
        assert callable(getattr(pipeline, name))
    for name in ("plan", "advance"):
        assert callable(getattr(safelight.DDIMScheduler, name))
