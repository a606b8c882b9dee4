"""Repositories on the Hub, looked at without being downloaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from safelight.repository.survey import survey

from ..helpers.hub_server import HubServer, serve
from ..helpers.repositories import write_stable_diffusion

ID = "someone/small-diffusion"
INSPECT = "import sys; from safelight.cli.main import main; sys.exit(main(['inspect', {id!r}, '--json', *{flags}]))"
LOAD = "import safelight; safelight.DiffusionPipeline.from_pretrained({id!r}, safety_checker=None)"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    folder = write_stable_diffusion(root / ID, max_shard_size="500KB")
    (folder / "v1-5.ckpt").write_bytes(b"not needed")
    with serve(root) as server:
        yield server


def inspected(hub: HubServer, cache: Path, *flags: str, name: str = ID, **env: str) -> dict:
    hub.log.clear()
    result = hub.client(INSPECT.format(id=name, flags=list(flags)), cache, **env)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def weights(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.suffix in (".safetensors", ".bin", ".ckpt")]


def without_place(part: dict) -> dict:
    """Without what differs between a folder and the Hub: whether a file is here."""
    return {**part, "files": [(file["name"], file["size"]) for file in part["files"]]}


def missing(report: dict) -> set[str]:
    """Files that loading without the safety checker would fetch."""
    parts = [part for part in report["parts"] if part["name"] != "safety_checker"]
    return {file["name"] for part in parts for file in part["files"] if not file["cached"]}


def test_what_is_announced_is_what_loading_fetches(hub, tmp_path):
    report = inspected(hub, tmp_path)
    local = asdict(survey(str(hub.root / ID)))
    assert [without_place(part) for part in report["parts"]] == [without_place(part) for part in local["parts"]]
    assert not weights(tmp_path), "headers are enough"
    assert report["cached"] + report["to_download"] == local["cached"]
    assert report["to_download"] > report["bytes"] > report["cached"]

    announced = missing(report)
    hub.log.clear()
    assert hub.client(LOAD.format(id=ID), tmp_path).returncode == 0
    fetched = {name.removeprefix(f"{ID}/") for name in hub.fetched() if name.startswith(ID)}
    assert fetched <= announced
    heavy = {name for name in announced if name.endswith(".safetensors")}
    assert len(heavy) >= 5, "shards are listed one by one"
    assert heavy <= fetched

    after = inspected(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert not hub.log
    assert not missing(after) & heavy
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (next(one for one in seen["parts"] if one["name"] == part) for seen in (after, local))
        assert ours["parameters"] == theirs["parameters"]


def test_offline_and_not_cached(hub, tmp_path):
    result = hub.client(INSPECT.format(id=ID, flags=["--local-files-only"]), tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"safelight: error: '{ID}' is neither a local folder nor in the cache")


def test_no_such_repository(hub, tmp_path):
    result = hub.client(INSPECT.format(id="someone/nothing", flags=[]), tmp_path)
    assert result.returncode == 2
    assert "no such repository" in result.stderr
    assert result.stderr.count("\n") == 1


def test_root_layout_on_the_hub(hub, tmp_path, ddpm_root):
    shutil.copytree(ddpm_root, hub.root / "someone/cat")
    report = inspected(hub, tmp_path, name="someone/cat")
    unet = {part["name"]: part for part in report["parts"]}["unet"]
    assert unet["parameters"] == survey(str(ddpm_root)).parameters > 0
    assert not weights(tmp_path)
