"""The project's own source files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "safelight"


def python_files(*folders: str) -> Iterator[Path]:
    """Every Python file below the folders (all of the project's by default), in a fixed order."""
    for folder in folders or ("src", "tests", "benchmarks", "examples", "docs"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
