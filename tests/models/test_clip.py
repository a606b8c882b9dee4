from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.errors import ConfigError, InputError, WeightsError
from safelight.models.text.clip import CLIPTextModel, CLIPTextModelWithProjection

from ..helpers.repositories import randomise

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 8,
    "eos_token_id": 59,
}
IDS = torch.tensor([[1, 5, 9, 59, 59], [2, 59, 3, 4, 59]])


@pytest.fixture
def encoder() -> CLIPTextModel:
    return randomise(CLIPTextModel(**SMALL))


def test_outputs(encoder: CLIPTextModel) -> None:
    output = encoder(IDS, output_hidden_states=True)
    assert output[0].shape == output.last_hidden_state.shape == (2, 5, 16)
    assert torch.equal(output.pooler_output, output[0][[0, 1], [3, 1]])
    assert len(output.hidden_states) == 3
    final_norm = encoder.text_model.final_layer_norm
    assert torch.equal(final_norm(output.hidden_states[-1]), output[0])
    assert encoder(IDS).hidden_states is None
    assert torch.equal(encoder(IDS, return_dict=False)[1], output.pooler_output)
    projecting = randomise(CLIPTextModelWithProjection(**SMALL))
    assert projecting(IDS)[0].shape == (2, 8)


def test_a_token_sees_only_those_before_it(encoder: CLIPTextModel) -> None:
    changed = IDS.clone()
    changed[:, 3] = 7
    before, after = encoder(IDS)[0], encoder(changed)[0]
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_a_mask_hides_tokens_and_never_gives_nan(encoder: CLIPTextModel) -> None:
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 1, 1]])
    changed = IDS.clone()
    changed[0, 2] = 33
    a, b = encoder(IDS, attention_mask=mask)[0], encoder(changed, attention_mask=mask)[0]
    assert torch.equal(a[0, 3:], b[0, 3:])
    assert torch.isfinite(a).all()


def test_checkpointing_gives_the_same_gradients(encoder: CLIPTextModel) -> None:
    gradients = []
    for switch in (encoder.gradient_checkpointing_disable, encoder.gradient_checkpointing_enable):
        switch()
        encoder.zero_grad()
        encoder(IDS)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    assert encoder.text_model.encoder.gradient_checkpointing
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_resizing_keeps_the_rows(encoder: CLIPTextModel, tmp_path: Path) -> None:
    old = encoder.get_input_embeddings().weight.clone()
    encoder.requires_grad_(False)
    new = encoder.resize_token_embeddings(63)
    assert encoder.get_input_embeddings() is new
    assert torch.equal(new.weight[:60], old)
    assert new.weight[60:].std() > 0
    assert not new.weight.requires_grad
    assert encoder.config.vocab_size == 63
    assert encoder(torch.tensor([[62, 59]]))[0].shape == (1, 2, 16)
    encoder.save_pretrained(tmp_path)
    assert torch.equal(CLIPTextModel.from_pretrained(tmp_path).get_input_embeddings().weight, new.weight)
    assert encoder.resize_token_embeddings(10).weight.shape == (10, 16)


@pytest.mark.parametrize("spelling", ["text_model.", ""])
def test_every_spelling_of_the_keys_loads(encoder: CLIPTextModel, tmp_path: Path, spelling: str) -> None:
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {spelling + key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    tensors[f"{spelling}embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path, metadata={"format": "pt"})
    assert torch.equal(CLIPTextModel.from_pretrained(tmp_path)(IDS)[0], encoder(IDS)[0])
    tensors["text_model.encoder.layers.7.surprise"] = torch.zeros(1)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="surprise"):
        CLIPTextModel.from_pretrained(tmp_path)


def test_the_text_half_of_a_whole_clip(encoder: CLIPTextModel, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    others = ("vision_model.embeddings.class_embedding", "visual_projection.weight", "text_projection.weight")
    save_file({**load_file(path), **{k: torch.ones(1) for k in others}, "logit_scale": torch.ones(())}, path)
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "clip", "projection_dim": 8, "text_config": text, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert torch.equal(CLIPTextModel.from_pretrained(tmp_path)(IDS)[0], encoder(IDS)[0])


def test_the_config_speaks_for_the_class(encoder: CLIPTextModel) -> None:
    config = json.loads(encoder.half().to_json_string())
    assert config["architectures"] == ["CLIPTextModel"]
    assert config["torch_dtype"] == "float16"
    assert not [key for key in config if key.startswith("_")]
    again = CLIPTextModel.from_config({**config, "use_cache": True, "dtype": "bfloat16"})
    written = json.loads(again.to_json_string())
    assert (written["use_cache"], written["dtype"], written["torch_dtype"]) == (True, "float32", "float32")


BAD_INPUTS = {
    "too long": (torch.zeros(1, 78, dtype=torch.long), "78 tokens.*77"),
    "outside": (torch.tensor([[1, 60]]), "resize_token_embeddings"),
    "floats": (torch.zeros(1, 4), "integers"),
    "a list": ([[1, 2]], "list"),
    "empty": (torch.zeros(1, 0, dtype=torch.long), "input_ids"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(encoder: CLIPTextModel, name: str) -> None:
    ids, words = BAD_INPUTS[name]
    with pytest.raises(InputError, match=words):
        encoder(ids)


def test_bad_configs() -> None:
    for config, words in (
        ({"hidden_act": "quick_gelo"}, "quick_gelu"),
        ({"num_attention_heads": 3}, "divisible"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
    ):
        with pytest.raises(ConfigError, match=words):
            CLIPTextModel(**{**SMALL, **config})
