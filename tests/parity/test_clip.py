"""CLIP's text encoder and tokenizer against transformers': same ids, same numbers, same files."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from safelight.models.text.clip import CLIPTextModel, CLIPTextModelWithProjection
from safelight.models.text.tokenizers import CLIPTokenizer

from ..helpers.clip_vocab import END, START, write_clip_tokenizer
from ..helpers.compare import relative_difference
from ..helpers.repositories import randomise

ODD = [
    "",
    "   ",
    "\t\n a  photo\r\n",
    "a photo of an astronaut riding a horse on mars",
    "hello! a!!! b! wow !",
    "it's they're I'LL you've she'd don't 'tis",
    f"{END} x{END}y {START}z <|ENDOFTEXT|> <|StartOfText|>",
    "고양이가 달리는 그림, 수채화",
    "日本語と中文字符 العربية עברית हिन्दी ไทย",
    "😀 👩‍👩‍👧 🇰🇷 ❤️ ☃",
    "&amp; &lt;b&gt; &#39; <br/>",
    "Ünïcödé ﬁ Ⅻ ½ ß ẞ İstanbul ŉ",
    "e\u0301 \u1112\u1161\u11ab \u212b",
    "\u200b\x00x\ufeff \u3000y\xa0z\u2028",
    "1234 12.5 0x1F, 3:2 -- ... ###",
    "a" * 600,
    "word " * 600,
    "CamelCase snake_case kebab-case https://example.org/?q=1&r=2",
]


def _random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    ranges = [(32, 127), (32, 0x2FFF), (0xAC00, 0xD7A3), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF), (32, 127)]
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 60))) for _ in range(count)]


TEXTS = [*ODD, *_random_texts(200)]


def _vocabulary_files(folder: Path, theirs: Any) -> None:
    """SD1.5's layout as it is."""


def _tokenizer_json(folder: Path, theirs: Any) -> None:
    for path in folder.iterdir():
        path.unlink()
    theirs.save_pretrained(folder)


def _no_special_files(folder: Path, theirs: Any) -> None:
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _added_later(folder: Path, theirs: Any) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<cat>": 49408, "Dog-Toy": 49409}))


def _added_in_config(folder: Path, theirs: Any) -> None:
    flags = {"lstrip": False, "normalized": False, "rstrip": True, "single_word": False, "special": True}
    tokens = {49406: START, 49407: END, 49408: "<cat>"}
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"] = {str(index): {"content": token, **flags} for index, token in tokens.items()}
    config["additional_special_tokens"] = ["<cat>", "<s1>"]
    path.write_text(json.dumps(config))


LAYOUTS = [_vocabulary_files, _tokenizer_json, _no_special_files, _added_later, _added_in_config]


@pytest.fixture(scope="module", params=itertools.product(LAYOUTS, (END, "!")), ids=lambda p: p[0].__name__ + p[1])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPTokenizer, Any]:
    layout, pad = request.param
    folder = write_clip_tokenizer(tmp_path_factory.mktemp("tokenizer"), pad)
    layout(folder, transformers.CLIPTokenizer.from_pretrained(folder))
    return CLIPTokenizer.from_pretrained(folder), transformers.CLIPTokenizer.from_pretrained(folder)


EXTRA = ["a <cat> <CAT>x  dog-toy Dog-Toy <s1>y"]


def test_same_ids_tokens_and_texts(pair: tuple[CLIPTokenizer, Any]) -> None:
    ours, theirs = pair
    for text in TEXTS + EXTRA:
        ids = ours(text).input_ids
        assert ids == theirs(text).input_ids, text
        assert ours.tokenize(text) == theirs.tokenize(text)
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.added_tokens_encoder == ours.get_added_vocab() == theirs.added_tokens_encoder
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)


CALLS: list[dict[str, Any]] = [
    {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"},
    {"padding": "max_length", "max_length": 9, "truncation": True, "return_tensors": "np"},
    {"padding": "longest", "truncation": True, "max_length": 20, "return_length": True},
    {"padding": True},
    {"padding": "max_length", "max_length": 12},
    {"padding": True, "pad_to_multiple_of": 8, "return_tensors": "pt"},
    {"max_length": 6},
    {"add_special_tokens": False, "padding": True, "truncation": True, "max_length": 5},
    {"return_attention_mask": False},
    {"truncation": "longest_first", "max_length": 2},
]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_same_calls(pair: tuple[CLIPTokenizer, Any], call: dict[str, Any]) -> None:
    ours, theirs = pair
    for texts in (ODD, ["one", "two words"], ODD[3]):
        a, b = ours(texts, **call), theirs(texts, **call)
        assert set(a) == set(b)
        for name in b:
            assert type(a[name]) is type(b[name])
            assert _plain(a[name]) == _plain(b[name])


def test_what_we_save_transformers_reads(pair: tuple[CLIPTokenizer, Any], tmp_path: Path) -> None:
    ours, _ = pair
    ours.save_pretrained(tmp_path)
    theirs, again = transformers.CLIPTokenizer.from_pretrained(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    expected = ours(ODD + EXTRA).input_ids
    assert theirs(ODD + EXTRA).input_ids == again(ODD + EXTRA).input_ids == expected
    assert theirs.special_tokens_map == again.special_tokens_map == ours.special_tokens_map
    assert theirs.model_max_length == again.model_max_length == 77


def test_added_tokens(tmp_path: Path) -> None:
    folder = write_clip_tokenizer(tmp_path)
    for add in (
        lambda t: t.add_tokens("<cat>"),
        lambda t: t.add_tokens(["<cat>", "Dog-Toy", "photo</w>"]),
        lambda t: t.add_tokens(["<s0>"], special_tokens=True),
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<s1>"], "pad_token": "<pad>"}),
    ):
        ours, theirs = CLIPTokenizer.from_pretrained(folder), transformers.CLIPTokenizer.from_pretrained(folder)
        assert add(ours) == add(theirs)
        text = "a <cat> <CAT> Dog-Toy dog-toy photo</w> x<s0>y <s1> <pad>"
        assert ours(text).input_ids == theirs(text).input_ids
        assert len(ours) == len(theirs)
        assert ours.pad_token_id == theirs.pad_token_id


SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 16,
}
MODELS = [
    (CLIPTextModel, transformers.CLIPTextModel),
    (CLIPTextModelWithProjection, transformers.CLIPTextModelWithProjection),
]
CONFIGS: list[dict[str, Any]] = [
    {"eos_token_id": 2},
    {"eos_token_id": 99},
    {"hidden_act": "gelu", "eos_token_id": 99, "layer_norm_eps": 1e-3},
    {"hidden_act": "gelu_new", "num_attention_heads": 1, "max_position_embeddings": 20},
]


def _saved(folder: Path, theirs_class: Any, **config: Any) -> Any:
    theirs = randomise(theirs_class(transformers.CLIPTextConfig(**{**SMALL, **config})))
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("ours_class", "theirs_class"), MODELS, ids=lambda c: c.__module__.split(".")[0])
def test_same_outputs(tmp_path: Path, ours_class: Any, theirs_class: Any, config: dict[str, Any]) -> None:
    theirs = _saved(tmp_path, theirs_class, **config)
    ours = ours_class.from_pretrained(tmp_path)
    ids = torch.randint(0, 98, (3, 20), generator=torch.Generator().manual_seed(0))
    ids[0, 12:], ids[1, 19], ids[2, 5] = 99, 99, 99
    padding = torch.ones_like(ids)
    padding[:, 14:] = 0
    backwards = torch.arange(20).flip(0)[None]
    for options in ({}, {"attention_mask": padding}, {"position_ids": backwards}):
        with torch.no_grad():
            a = ours(ids, output_hidden_states=True, **options)
            b = theirs(ids, output_hidden_states=True, **options)
        assert set(a.keys()) == set(b.keys())
        assert len(a.hidden_states) == len(b.hidden_states) == 4
        pairs = [(a[0], b[0]), (a[1], b[1]), *zip(a.hidden_states, b.hidden_states, strict=True)]
        assert max(relative_difference(x, y) for x, y in pairs) <= 1e-5


@pytest.mark.parametrize(("ours_class", "theirs_class"), MODELS, ids=lambda c: c.__module__.split(".")[0])
def test_same_files_both_ways(tmp_path: Path, ours_class: Any, theirs_class: Any) -> None:
    theirs = _saved(tmp_path / "theirs", theirs_class, eos_token_id=2)
    ours = ours_class.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    # Version 4 of transformers knows the keys only with this prefix.
    assert all(key.startswith("text_") for key in load_file(tmp_path / "ours" / "model.safetensors"))
    back, report = theirs_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), theirs.state_dict().values(), strict=True))
    written, original = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs"))
    assert written.pop("torch_dtype") == original["dtype"]
    assert written == original
    half = ours_class.from_pretrained(tmp_path / "theirs", dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    assert theirs_class.from_pretrained(tmp_path / "half").dtype == torch.float16


FULL_SIZE = {
    "sd1": ({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}, 123_060_480),
    "sd2": (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23},
        340_387_840,
    ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_keys_and_shapes(name: str) -> None:
    config, count = FULL_SIZE[name]
    with torch.device("meta"):
        ours = CLIPTextModel(**config)
        theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    expected = {f"text_model.{key}": value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert ours.num_parameters() == theirs.num_parameters() == count
