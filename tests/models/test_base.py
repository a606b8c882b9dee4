"""What every network has from its base: loading with its options, dtype, device, counts, checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safelight import ConfigError, ModelMixin, UnknownArgumentError, UnsafeFileError, WeightsError, register_to_config
from safelight.repository import hub
from safelight.repository.weights import save_weights


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gradient_checkpointing = False
        self.gate = nn.Linear(width, width, bias=False)


class WordNet(ModelMixin):
    """Embeddings tied to the output layer, a block, a stored and a computed buffer."""

    _old_keys = ((r"^inner\.", "block."),)
    _ignored_keys = (r"position_ids$",)
    _keep_in_fp32 = ("norm",)

    @register_to_config
    def __init__(self, width: int = 4, words: int = 10):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.norm = nn.LayerNorm(width)
        self.block = Block(width)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("scale", torch.full((1,), 3.0))
        self.register_buffer("steps", torch.arange(words), persistent=False)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = WordNet()
    model.save_pretrained(tmp_path)
    return model


def _rewrite(folder, change) -> None:
    state = {name: tensor.clone() for name, tensor in WordNet.from_pretrained(folder).state_dict().items()}
    change(state)
    save_weights(state, folder, WordNet._weights_name)


def test_what_is_loaded_is_what_was_saved(saved, tmp_path):
    model = WordNet.from_pretrained(tmp_path)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.steps.tolist() == list(range(10))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in saved.state_dict().items())
    assert model.config._name_or_path == str(tmp_path)


def test_tied_weights_stay_tied(saved, tmp_path):
    model = WordNet.from_pretrained(tmp_path)
    assert model.out.weight is model.words.weight
    _rewrite(tmp_path, lambda state: state.pop("out.weight"))
    once = WordNet.from_pretrained(tmp_path)
    assert once.out.weight is once.words.weight
    assert torch.equal(once.out.weight, saved.words.weight)


def test_writing_to_a_loaded_weight_does_not_touch_the_file(saved, tmp_path):
    model = WordNet.from_pretrained(tmp_path)
    with torch.no_grad():
        model.words.weight.zero_()
    model.save_pretrained(tmp_path / "other")
    assert torch.equal(WordNet.from_pretrained(tmp_path).words.weight, saved.words.weight)
    assert not WordNet.from_pretrained(tmp_path / "other").words.weight.any()


def test_old_spellings_and_leftovers(saved, tmp_path):
    def age(state):
        state["inner.gate.weight"] = state.pop("block.gate.weight")
        state["position_ids"] = torch.arange(3)

    _rewrite(tmp_path, age)
    assert torch.equal(WordNet.from_pretrained(tmp_path).block.gate.weight, saved.block.gate.weight)
    _rewrite(tmp_path, lambda state: state.update(norm=torch.zeros(1)))
    with pytest.raises(WeightsError, match="1 unexpected: norm"):
        WordNet.from_pretrained(tmp_path)


def test_a_tensor_of_another_kind_does_not_fit(saved, tmp_path):
    _rewrite(tmp_path, lambda state: state.update(scale=torch.ones(1, dtype=torch.int8)))
    with pytest.raises(WeightsError, match=r"scale \(1,\) of int8"):
        WordNet.from_pretrained(tmp_path)


def test_what_is_kept_in_float32(saved, tmp_path):
    loaded, moved = WordNet.from_pretrained(tmp_path, dtype="bfloat16"), WordNet.from_pretrained(tmp_path)
    exact = moved.norm.weight.detach().fill_(1 + 2**-12).clone()
    assert moved.to("cpu", torch.bfloat16) is moved
    for model in (loaded, moved):
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {"norm.weight", "norm.bias"}
        assert model.scale.dtype == torch.bfloat16
        assert model.out.weight is model.words.weight
    assert torch.equal(moved.norm.weight, exact), "a way through bfloat16 would have rounded it"


def test_config_overrides_and_misspelt_options(saved, tmp_path):
    with pytest.raises(WeightsError, match=r"words.weight \(10, 4\), the model has \(12, 4\)"):
        WordNet.from_pretrained(tmp_path, words=12)
    larger = WordNet.from_pretrained(tmp_path, words=12, ignore_mismatched_sizes=True)
    assert larger.words.weight.shape == (12, 4)
    assert larger.out.weight is larger.words.weight
    with pytest.raises(UnknownArgumentError, match="'varient'; did you mean 'variant'"):
        WordNet.from_pretrained(tmp_path, varient="fp16")


def test_options_of_other_libraries_are_taken_with_one_notice(saved, tmp_path, caplog):
    hub._notice.cache_clear()
    for _ in range(2):
        WordNet.from_pretrained(tmp_path, low_cpu_mem_usage=True, device_map=None, offload_folder=None)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["low_cpu_mem_usage"]


def test_a_device_map_that_names_a_device_is_one(saved, tmp_path, caplog):
    assert WordNet.from_pretrained(tmp_path, device_map="meta").device.type == "meta"
    assert WordNet.from_pretrained(tmp_path, device_map={"": "cpu"}).device.type == "cpu"
    assert not caplog.records
    assert WordNet.from_pretrained(tmp_path, device_map="auto").device.type == "cpu"
    assert "pass device=" in caplog.text


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"device": "gpu"}, "gpu"),
        ({"device_map": "balance"}, "balance"),
        ({"dtype": torch.int8}, "int8"),
        ({"dtype": ["float16"]}, "float16"),
        ({"torch_dtype": "flaot16"}, "float16"),
    ],
)
def test_devices_and_dtypes_that_are_none(saved, tmp_path, options, word):
    with pytest.raises(ConfigError, match=word):
        WordNet.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("layout", ["zip", "legacy", "nested"])
def test_pickles_are_read_only_when_asked_for(saved, tmp_path, layout):
    state = saved.state_dict()
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(
        {"state_dict": state} if layout == "nested" else state,
        tmp_path / "diffusion_pytorch_model.bin",
        _use_new_zipfile_serialization=layout != "legacy",
    )
    with pytest.raises(UnsafeFileError, match="use_safetensors=False"):
        WordNet.from_pretrained(tmp_path)
    model = WordNet.from_pretrained(tmp_path, use_safetensors=False)
    assert torch.equal(model.words.weight, saved.words.weight)


class Bomb:
    def __reduce__(self):
        return print, ("code from the file ran",)


@pytest.mark.parametrize("content", [Bomb(), {"words.weight": Bomb()}, [1, 2], {"words.weight": 5}])
def test_pickles_of_anything_else_run_nothing(saved, tmp_path, content, capsys):
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(content, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"diffusion_pytorch_model\.bin"):
        WordNet.from_pretrained(tmp_path, use_safetensors=False)
    assert capsys.readouterr().out == ""


def test_counts():
    model = WordNet()
    model.block.requires_grad_(False)
    assert model.num_parameters() == 10 * 4 + 2 * 4 + 4 * 4
    assert model.num_parameters(only_trainable=True) == 10 * 4 + 2 * 4
    assert model.num_parameters(exclude_embeddings=True) == 2 * 4 + 4 * 4
    assert model.dtype == torch.float32
    assert model.double().dtype == torch.float64


def test_gradient_checkpointing_reaches_every_part():
    model = WordNet()
    assert not model.is_gradient_checkpointing
    model.enable_gradient_checkpointing()
    assert model.block.gradient_checkpointing
    assert model.is_gradient_checkpointing
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing
    model.block = nn.Identity()
    with pytest.raises(ConfigError, match="WordNet"):
        model.enable_gradient_checkpointing()


def test_nothing_is_saved_as_a_pickle_or_over_a_file(saved, tmp_path):
    with pytest.raises(ConfigError, match="safe_serialization"):
        saved.save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        saved.save_pretrained(tmp_path / "file")
    saved.save_pretrained(tmp_path / "nowhere", is_main_process=False)
    assert not (tmp_path / "nowhere").exists()


def test_its_other_name():
    from safelight.models import modeling_utils

    assert modeling_utils.ModelMixin is ModelMixin
