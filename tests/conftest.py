"""Repositories that several tests read, each written once per process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from .helpers import repositories


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository in Stable Diffusion 1.5's layout, written by diffusers."""
    return repositories.write_stable_diffusion(tmp_path_factory.mktemp("repositories") / "stable-diffusion")


@pytest.fixture(scope="session")
def ddpm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository in the root layout of google/ddpm-cat-256, written by diffusers."""
    return repositories.write_ddpm_root_layout(tmp_path_factory.mktemp("repositories") / "ddpm-cat")
