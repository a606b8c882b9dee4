"""The tree names no machine: no absolute path of somebody's home or workplace stands in it."""

from __future__ import annotations

import re

from ..helpers.tree import ROOT

MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|work|Users|mnt|opt)/[\w.-]+")
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".html", ".css", ".js", ".svg", ""}
LEFT_OUT = {".venv", ".git", "build", "dist", "outputs", "runs", "shared", "node_modules"}


def test_no_path_of_a_machine() -> None:
    tops = [path for path in ROOT.iterdir() if path.name not in LEFT_OUT and not path.name.endswith("_cache")]
    files = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*")) if path.suffix in TEXT]
    named = {}
    for path in filter(lambda path: path.is_file() and "__pycache__" not in path.parts, files):
        hits = MACHINE_PATH.findall(path.read_text(encoding="utf-8", errors="replace"))
        named.update({str(path.relative_to(ROOT)): hits} if hits else {})
    assert ROOT / "pyproject.toml" in files
    assert MACHINE_PATH.search("see /home" + "/someone/x")
    assert not named
