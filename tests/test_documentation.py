"""The documentation tells what runs: every Python block of the pages below is executed, page by page, in order."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import safelight

from .helpers.tree import ROOT

PAGES = ["README.md", "README.ko.md", "docs/index.md", "docs/tour.md", "docs/new_scheduler.md", "docs/schedulers.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# The Korean page's code is that of the English one, as the last test makes sure.
@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.ko.md"])
def test_python_blocks_run(page: str, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    assert code
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    run([sys.executable, "page.py"], tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not ((ROOT / page).parent / link).exists()]
    assert links
    assert not missing


def test_every_scheduler_has_its_reference() -> None:
    text = (ROOT / "docs/reference/schedulers.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)\.(\w+Scheduler)$", text, flags=re.M)
    assert {name for _, name in listed} >= {name for name in safelight.__all__ if name.endswith("Scheduler")}
    assert all(getattr(importlib.import_module(module), name).__module__ == module for module, name in listed)


def without_comments(page: str, language: str) -> list[str]:
    return [re.sub(r"\s*#.*", "", block) for block in blocks(page, language)]


@pytest.mark.parametrize("language", ["python", "sh"])
def test_both_tours_run_the_same_code(language: str) -> None:
    assert without_comments("README.md", language) == without_comments("README.ko.md", language)
