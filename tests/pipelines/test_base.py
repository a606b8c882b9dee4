"""A pipeline as a set of components: loaded, swapped, moved, shown."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch

import safelight
from safelight import (
    AutoencoderKL,
    ConfigError,
    DDIMPipeline,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    InputError,
    RepositoryError,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UnknownArgumentError,
    UnsafeFileError,
    register_to_config,
)
from safelight.runtime.precision import fast_dtype


@pytest.fixture(scope="module")
def pipe(stable_diffusion):
    return DiffusionPipeline.from_pretrained(stable_diffusion)


def test_the_class_comes_from_the_file_or_from_the_caller(pipe, ddpm_root):
    assert type(pipe) is StableDiffusionPipeline
    assert type(DiffusionPipeline.from_pretrained(ddpm_root)) is DDPMPipeline
    assert type(DDIMPipeline.from_pretrained(ddpm_root)) is DDIMPipeline
    assert not any(model.training for model in pipe.components.values() if isinstance(model, torch.nn.Module))


def test_parts_load_on_their_own(stable_diffusion, ddpm_root):
    assert isinstance(UNet2DConditionModel.from_pretrained(stable_diffusion, subfolder="unet"), UNet2DConditionModel)
    assert isinstance(UNet2DModel.from_pretrained(ddpm_root, use_safetensors=True), UNet2DModel)
    assert DDPMScheduler.from_pretrained(ddpm_root).config.num_train_timesteps == 1000
    with pytest.raises(RepositoryError, match="subfolder"):
        AutoencoderKL.from_pretrained(stable_diffusion)


def test_components_given_by_name_are_used_and_their_files_not_needed(stable_diffusion, tmp_path, pipe):
    folder = shutil.copytree(stable_diffusion, tmp_path / "repository")
    shutil.rmtree(folder / "unet")
    shutil.rmtree(folder / "safety_checker")
    loaded = StableDiffusionPipeline.from_pretrained(folder, unet=pipe.unet, safety_checker=None)
    assert loaded.unet is pipe.unet
    assert loaded.safety_checker is None
    assert loaded.config["safety_checker"] == (None, None)


@pytest.mark.parametrize("entry", [None, [None, None]])
def test_all_missing_components_are_named_before_any_is_loaded(stable_diffusion, tmp_path, monkeypatch, entry):
    index = json.loads((stable_diffusion / "model_index.json").read_text())
    for name in ("unet", "vae"):
        index[name] = entry
    index = {name: value for name, value in index.items() if value is not None}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr("safelight.pipelines.components.load", lambda *arguments: pytest.fail("loaded too early"))
    with pytest.raises(RepositoryError, match="'vae', 'unet'") as caught:
        DiffusionPipeline.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers"]}))
    with pytest.raises(RepositoryError, match=r"\['diffusers'\] for 'unet'"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_another_classes_repository_lacks_what_is_needed(ddpm_root):
    with pytest.raises(RepositoryError, match="'vae', 'text_encoder', 'tokenizer'"):
        StableDiffusionPipeline.from_pretrained(ddpm_root)


def test_dtype_device_and_their_names(stable_diffusion):
    def dtypes(**options):
        loaded = DiffusionPipeline.from_pretrained(stable_diffusion, safety_checker=None, **options)
        return {name: part.dtype for name, part in loaded.components.items() if isinstance(part, torch.nn.Module)}

    assert set(dtypes().values()) == {torch.float32}
    assert set(dtypes(torch_dtype=torch.bfloat16).values()) == {torch.bfloat16}
    assert set(dtypes(dtype="float16").values()) == {torch.float16}
    assert set(dtypes(dtype="auto").values()) == {fast_dtype("cpu")}
    mixed = dtypes(dtype={"default": torch.bfloat16, "vae": torch.float32})
    assert mixed["vae"] == torch.float32
    assert mixed["unet"] == torch.bfloat16
    with pytest.raises(UnknownArgumentError, match="'unte'; did you mean 'unet'"):
        dtypes(dtype={"unte": torch.bfloat16})
    assert set(dtypes(device="cpu", low_cpu_mem_usage=True, device_map=None).values()) == {torch.float32}


def test_swapping_a_component_updates_what_is_shown_and_saved(pipe):
    own = copy.copy(pipe)
    own.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert own.config["scheduler"] == ("diffusers", "EulerDiscreteScheduler")
    assert '"EulerDiscreteScheduler"' in repr(own)
    assert pipe.config["scheduler"] == ("diffusers", "PNDMScheduler")


def test_repr_is_a_name_and_sorted_json(pipe):
    name, text = repr(pipe).split(" ", 1)
    shown = json.loads(text)
    assert name == "StableDiffusionPipeline"
    assert list(shown) == sorted(shown)
    assert shown["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert shown["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert shown["requires_safety_checker"] is True


def test_a_notebook_shows_a_table(pipe):
    page = pipe._repr_html_()
    for word in ("UNet2DConditionModel", "float32", "cpu", f"{pipe.unet.num_parameters():,}"):
        assert word in page
    evil = copy.copy(pipe)
    evil.register_to_config(_name_or_path="<script>alert(1)</script>")
    assert "<script>" not in evil._repr_html_()


def test_from_pipe_shares_components(pipe):
    other = StableDiffusionPipeline.from_pipe(pipe, safety_checker=None)
    assert other.unet is pipe.unet
    assert other.safety_checker is None
    with pytest.raises(ConfigError, match="specific class"):
        DiffusionPipeline.from_pipe(pipe)
    with pytest.raises(ConfigError, match="unnet"):
        StableDiffusionPipeline.from_pipe(pipe, unnet=None)


def test_to_moves_and_casts_in_any_order(stable_diffusion):
    loaded = DiffusionPipeline.from_pretrained(stable_diffusion, safety_checker=None)
    assert loaded.to("cpu", torch.bfloat16) is loaded
    assert loaded.dtype == torch.bfloat16
    assert loaded.to(torch.float32).to(device="cpu").dtype == torch.float32
    assert loaded.device == torch.device("cpu")
    for wrong in (("gpu",), ("cpu", "float16"), (torch.int8,)):
        with pytest.raises(InputError, match=str(wrong[-1])):
            loaded.to(*wrong)
    assert loaded.dtype == torch.float32


def test_progress_bars_follow_their_settings(pipe, capsys):
    own = copy.copy(pipe)
    own.set_progress_bar_config(desc="developing")
    list(own.progress_bar(range(3)))
    assert "developing" in capsys.readouterr().err
    own.set_progress_bar_config(disable=True)
    list(own.progress_bar(range(3)))
    assert capsys.readouterr().err == ""


def test_memory_switches_reach_the_vae(pipe):
    pipe.enable_attention_slicing()
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    assert pipe.vae.use_slicing
    assert pipe.vae.use_tiling
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    assert not pipe.vae.use_slicing


def test_repositories_cannot_bring_code(stable_diffusion):
    for option in ({"custom_pipeline": "someone/code"}, {"trust_remote_code": True}):
        with pytest.raises(UnsafeFileError, match="code"):
            DiffusionPipeline.from_pretrained(stable_diffusion, **option)


def test_outdated_settings_are_corrected(pipe, caplog):
    old = safelight.PNDMScheduler(steps_offset=0)
    clipping = safelight.DDIMScheduler(clip_sample=True, steps_offset=1)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "_diffusers_version": "0.8.0", "sample_size": 8})
    for scheduler in (old, clipping):
        built = StableDiffusionPipeline(
            **{**pipe.components, "scheduler": scheduler, "unet": unet}, requires_safety_checker=False
        )
        assert built.scheduler.config.steps_offset == 1
        assert built.scheduler.config.get("clip_sample", False) is False
        assert built.unet.config.sample_size == 64
    assert old.config.steps_offset == 0
    assert "outdated" in caplog.text


def test_a_scripts_own_pipeline_and_model(tmp_path):
    class TinyNet(safelight.ModelMixin):
        @register_to_config
        def __init__(self, width: int = 4):
            super().__init__()
            self.layer = torch.nn.Linear(width, width)
            self.register_buffer("table", torch.arange(width), persistent=False)

    class TinyPipeline(DiffusionPipeline):
        def __init__(self, net, scheduler, note="none"):
            super().__init__()
            self.register_modules(net=net, scheduler=scheduler)
            self.register_to_config(note=note)

    built = TinyPipeline(TinyNet(6), DDPMScheduler(), note="mine")
    built.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is TinyPipeline
    assert loaded.config.note == "mine"
    assert torch.equal(loaded.net.layer.weight, built.net.layer.weight)
    assert loaded.net.table.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_compiled_component_is_shown_and_saved_as_itself(pipe, tmp_path):
    own = copy.copy(pipe)
    own.unet = torch.compile(pipe.unet, backend="eager")
    assert own.config["unet"] == ("diffusers", "UNet2DConditionModel")
    own.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert torch.equal(loaded.unet.conv_in.weight, pipe.unet.conv_in.weight)
