"""The real Hub client against a stand-in Hub: what is fetched, what is remembered, what is resumed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import safelight
from safelight.repository.hub import RENAMED, Source

from ..helpers.hub_server import serve
from ..helpers.repositories import write_stable_diffusion

ID = "someone/small-diffusion"
LOAD = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 4096
import safelight
pipe = safelight.DiffusionPipeline.from_pretrained({id!r}, {options})
print(json.dumps([sum(p.double().sum().item() for p in pipe.unet.parameters()), str(pipe.dtype)]))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with one repository as they are in the wild: two variants, shards, pickled twins, ONNX and single files."""
    root = tmp_path_factory.mktemp("hub")
    folder = write_stable_diffusion(root / ID, max_shard_size="60KB")
    half = write_stable_diffusion(root / "half", dtype=torch.float16, variant="fp16")
    for part in ("unet", "vae", "text_encoder", "safety_checker"):
        for path in (half / part).glob("*.fp16.safetensors"):
            shutil.copy(path, folder / part)
        for path in (folder / part).glob("*.safetensors"):
            torch.save(load_file(path), path.with_suffix(".bin"))
    for name in (
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "unet/model.onnx",
        "unet/flax_model.msgpack",
        "README.md",
    ):
        (folder / name).write_bytes(b"not needed")
    shutil.copytree(folder, root / RENAMED["runwayml/stable-diffusion-v1-5"])
    with serve(root) as server:
        yield server


def _load(hub, cache, name=ID, options="safety_checker=None", **env):
    hub.log.clear()
    hub.ranges.clear()
    return hub.client(LOAD.format(id=name, options=options), cache, **env)


def test_only_needed_files_are_fetched_and_the_second_load_asks_nothing(hub, tmp_path):
    first = _load(hub, tmp_path)
    assert first.returncode == 0, first.stderr
    fetched = {name.removeprefix(f"{ID}/") for name in hub.fetched()}
    shards = {name for name in fetched if "-of-" in name}
    assert len(shards) >= 4, "the repository should be sharded"
    assert fetched - shards == {
        "model_index.json",
        "feature_extractor/preprocessor_config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors.index.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors.index.json",
    }
    assert not any("fp16" in name for name in shards)

    again = _load(hub, tmp_path)
    assert again.returncode == 0, again.stderr
    assert hub.log == []
    assert again.stdout == first.stdout
    offline = _load(hub, tmp_path, options="safety_checker=None, local_files_only=True", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout


def test_a_variant_fetches_its_own_files_alone(hub, tmp_path):
    options = "variant='fp16', torch_dtype='float16', safety_checker=None"
    first = _load(hub, tmp_path, options=options)
    assert first.returncode == 0, first.stderr
    weights = {name for name in hub.fetched() if name.endswith((".safetensors", ".bin"))}
    assert weights
    assert all(".fp16." in name for name in weights)
    assert json.loads(first.stdout)[1] == "torch.float16"
    assert _load(hub, tmp_path, options=options).stdout == first.stdout
    assert hub.log == []
    assert _load(hub, tmp_path).returncode == 0
    more = {name.rsplit("/", maxsplit=1)[-1] for name in hub.fetched()}
    assert more
    assert all("-of-" in name or ".index." in name for name in more), "of the other variant only what is missing"


def test_a_missing_variant_falls_back_with_a_warning_and_is_remembered(hub, tmp_path):
    options = "variant='int8', safety_checker=None"
    first = _load(hub, tmp_path, options=options)
    assert first.returncode == 0
    assert "no variant 'int8'" in first.stderr
    assert _load(hub, tmp_path, options=options).stdout == first.stdout
    assert hub.log == []


def test_a_broken_transfer_is_resumed_where_it_stopped(hub, tmp_path):
    names = [path.name for path in (hub.root / ID / "unet").glob("*-of-*.safetensors")]
    hub.cut[names[0]] = 20_000
    first = _load(hub, tmp_path)
    assert first.returncode == 0, first.stderr
    assert hub.ranges
    assert 0 < int(hub.ranges[0].removeprefix("bytes=").split("-")[0]) <= 20_000
    (found,) = tmp_path.rglob(names[0])
    assert found.read_bytes() == (hub.root / ID / "unet" / names[0]).read_bytes()


THREADS = """
from concurrent.futures import ThreadPoolExecutor
import safelight
load = lambda _: safelight.DiffusionPipeline.from_pretrained({id!r}, safety_checker=None).unet.num_parameters()
print(set(ThreadPoolExecutor(4).map(load, range(4))))
"""


def test_threads_that_load_at_once_fetch_each_file_once(hub, tmp_path):
    hub.log.clear()
    done = hub.client(THREADS.format(id=ID), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(",") == 0
    heavy = [path for method, path in hub.log if method == "GET" and path.endswith(".safetensors")]
    assert len(heavy) == len(set(heavy)) >= 4


def test_a_removed_repository_that_is_still_cached_is_used(tmp_path, caplog):
    name = "runwayml/stable-diffusion-v1-5"
    cached = tmp_path / "models--runwayml--stable-diffusion-v1-5"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("1" * 40)
    (cached / "snapshots" / ("1" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("1" * 40) / "model_index.json").write_text("{}")
    source, _ = Source.from_options(name, {"cache_dir": tmp_path})
    assert source.location == name
    assert source.file("model_index.json").read_text() == "{}"
    assert not caplog.records
    assert Source.from_options(name, {"cache_dir": tmp_path / "empty"})[0].location == RENAMED[name]
    assert RENAMED[name] in caplog.text


def test_a_failure_of_the_network_names_the_file(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("peer closed connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    source, _ = Source.from_options(ID, {"cache_dir": tmp_path, "subfolder": "unet"})
    with pytest.raises(safelight.RepositoryError, match=r"unet/config\.json.*peer closed"):
        source.file("config.json")


OFFLINE = """
import safelight
safelight.UNet2DConditionModel.load_config({id!r}, subfolder="unet")
try: safelight.UNet2DConditionModel.from_pretrained({id!r}, subfolder="unet", local_files_only=True)
except safelight.RepositoryError as error: print(error)
"""


def test_what_is_not_cached_is_not_said_to_be_absent(hub, tmp_path):
    hub.log.clear()
    said = hub.client(OFFLINE.format(id=ID), tmp_path).stdout
    assert "'diffusion_pytorch_model.safetensors'" in said
    assert "not in the cache" in said
    assert {path.rsplit("/", maxsplit=1)[-1] for _, path in hub.log if "/resolve/" in path} == {"config.json"}


def test_a_renamed_repository_resolves_with_a_notice(hub, tmp_path):
    first = _load(hub, tmp_path, "runwayml/stable-diffusion-v1-5")
    assert first.returncode == 0, first.stderr
    assert RENAMED["runwayml/stable-diffusion-v1-5"] in first.stderr
    assert all("runwayml" not in path for _, path in hub.log)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nobody/nothing", "", ["nobody/nothing", "auth login"]),
        ("someone/gated", "", ["someone/gated", "gated", "token"]),
        (ID, "revision='v9'", ["v9", "revision"]),
        (ID, "local_files_only=True", [ID, "local_files_only"]),
    ],
)
def test_what_cannot_be_fetched_says_why(hub, tmp_path, name, options, words):
    hub.gated = {"someone/gated"}
    code = f"import safelight\ntry: safelight.DiffusionPipeline.from_pretrained({name!r}, {options})\n"
    code += "except safelight.RepositoryError as error: print(error)"
    said = hub.client(code, tmp_path).stdout
    for word in words:
        assert word in said


def test_a_pickle_is_refused_without_being_fetched(hub, tmp_path):
    folder = hub.root / "someone" / "pickled"
    model = safelight.UNet2DModel(sample_size=4, block_out_channels=(8,), down_block_types=("DownBlock2D",),
                                  up_block_types=("UpBlock2D",), norm_num_groups=2)  # fmt: skip
    model.save_config(folder)
    torch.save(model.state_dict(), folder / "diffusion_pytorch_model.bin")
    hub.log.clear()
    code = "import safelight\ntry: safelight.UNet2DModel.from_pretrained('someone/pickled')\n"
    code += "except safelight.UnsafeFileError as error: print(error)\n"
    code += "print(safelight.UNet2DModel.from_pretrained('someone/pickled', use_safetensors=False).num_parameters())"
    said = hub.client(code, tmp_path)
    assert "use_safetensors=False" in said.stdout, said.stderr
    assert str(model.num_parameters()) in said.stdout


def test_local_sources(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text("{}")
    source, unused = Source.from_options(tmp_path, {"subfolder": "unet", "revision": None, "other": 1})
    assert unused == {"other": 1}
    assert source.file("config.json") == tmp_path / "unet/config.json"
    assert source.find("nothing") is None
    with pytest.raises(safelight.RepositoryError, match="nothing"):
        source.file("nothing")
