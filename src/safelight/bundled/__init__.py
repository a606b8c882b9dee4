"""Small trained models that ship with the package: each a repository in a folder here, loaded by the folder's name."""

from __future__ import annotations

from pathlib import Path


def bundled_models() -> dict[str, Path]:
    """The folder of each model that ships with the package, by its name."""
    indexes = sorted(Path(__file__).parent.glob("*/model_index.json"))
    return {index.parent.name: index.parent for index in indexes}
