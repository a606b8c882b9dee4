from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from safelight.errors import ConfigError, InputError, RepositoryError, SafelightError, UnknownArgumentError
from safelight.models.text.tokenizers import CLIPTokenizer

from ..helpers.clip_vocab import END, START, clip_vocabulary, write_clip_tokenizer

ASTRONAUT = "a photo of an astronaut riding a horse on mars"
ASTRONAUT_IDS = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("clip")
    write_clip_tokenizer(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def test_the_published_ids(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.encode(ASTRONAUT) == ASTRONAUT_IDS
    assert tokenizer.encode(ASTRONAUT, add_special_tokens=False) == ASTRONAUT_IDS[1:-1]
    assert tokenizer.decode(ASTRONAUT_IDS, skip_special_tokens=True) == ASTRONAUT
    assert tokenizer.batch_decode(torch.tensor([ASTRONAUT_IDS])) == [f"{START}{ASTRONAUT} {END}"]
    assert (len(tokenizer), tokenizer.vocab_size, tokenizer.model_max_length) == (49408, 49408, 77)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    assert ids == (49406, 49407, 49407, 49407)


def test_padding_and_truncation(tokenizer: CLIPTokenizer) -> None:
    batch = tokenizer([ASTRONAUT, "mars " * 100], padding="max_length", truncation=True, return_tensors="pt")
    assert batch.input_ids.shape == batch["attention_mask"].shape == (2, 77)
    assert batch.input_ids.dtype == torch.int64
    assert batch.input_ids[0].tolist() == ASTRONAUT_IDS + [49407] * 65
    assert batch.attention_mask.sum(dim=1).tolist() == [12, 77]
    assert batch.input_ids[1, [0, 75, 76]].tolist() == [49406, 7496, 49407]
    assert batch.to("cpu") is batch


def test_pad_of_ids_made_earlier(tokenizer: CLIPTokenizer) -> None:
    rows = [tokenizer("mars").input_ids, tokenizer(ASTRONAUT).input_ids]
    expected = tokenizer(["mars", ASTRONAUT], padding=True, return_tensors="pt")
    for given in ({"input_ids": rows}, [{"input_ids": torch.tensor(row)} for row in rows]):
        padded = tokenizer.pad(given, padding=True, return_tensors="pt")
        assert torch.equal(padded.input_ids, expected.input_ids)
        assert torch.equal(padded.attention_mask, expected.attention_mask)


def test_sides() -> None:
    left = CLIPTokenizer(*clip_vocabulary(), padding_side="left", truncation_side="left")
    assert left(["mars", "a horse"], padding=True).input_ids[0] == [49407, 49406, 7496, 49407]
    assert left(ASTRONAUT, truncation=True, max_length=4).input_ids == [49406, 525, 7496, 49407]


def test_tokens_and_ids(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(["photo</w>", "no such token"]) == [1125, 49407]
    assert tokenizer.convert_ids_to_tokens([1125, 49407], skip_special_tokens=True) == ["photo</w>"]
    assert tokenizer.convert_ids_to_tokens(1125) == "photo</w>"
    assert tokenizer.tokenize("A photo!") == ["a</w>", "photo</w>", "!</w>"]


def test_added_tokens_survive_saving(tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer(*clip_vocabulary())
    assert tokenizer.add_tokens(["<cat-toy>", "photo</w>"]) == 2  # the second becomes a word of its own, at its old id
    assert tokenizer.add_tokens("<cat-toy>") == 0
    assert tokenizer.add_special_tokens({"pad_token": "!"}) == 1
    assert tokenizer.convert_tokens_to_ids("<cat-toy>") == 49408
    tokenizer.save_pretrained(tmp_path)
    for copy in (CLIPTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy("a <cat-toy> photo").input_ids == [49406, 320, 49408, 1125, 49407]
        assert len(copy) == 49409
        assert copy.pad_token_id == 0


def test_many_threads_give_what_one_gives(tokenizer: CLIPTokenizer) -> None:
    lengths = [4 + k % 12 for k in range(200)]
    call = {"padding": "max_length", "truncation": True}
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda n: tokenizer(ASTRONAUT, max_length=n, **call).input_ids, lengths))
    for length, row in zip(lengths, rows, strict=True):
        kept = [*ASTRONAUT_IDS[: min(length, 12) - 1], 49407]
        assert row == kept + [49407] * (length - len(kept))


BAD_CALLS = {
    "a number": ((3,), {}, InputError, "int"),
    "a list with a number": ((["a", 3],), {}, InputError, "int"),
    "padding": (("a",), {"padding": "max"}, InputError, "padding"),
    "truncation": (("a",), {"truncation": "right"}, InputError, "truncation"),
    "tensors": (("a",), {"return_tensors": "tf"}, InputError, "tf"),
    "ragged": ((["a", "a b"],), {"return_tensors": "pt"}, InputError, "padding"),
    "no room": (("a",), {"truncation": True, "max_length": 1}, InputError, "max_length"),
    "misspelt": (("a",), {"max_lenght": 3}, UnknownArgumentError, "split_special_tokens"),
    "not supported": (("a",), {"return_offsets_mapping": True}, InputError, "return_offsets_mapping"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(tokenizer: CLIPTokenizer, name: str) -> None:
    args, options, error, word = BAD_CALLS[name]
    with pytest.raises(error, match=word):
        tokenizer(*args, **options)


def test_bad_files(tmp_path: Path) -> None:
    folder = write_clip_tokenizer(tmp_path)
    with pytest.raises(UnknownArgumentError, match="model_max_length"):
        CLIPTokenizer.from_pretrained(folder, model_max_lenght=10)
    with pytest.raises(ConfigError, match="padding_side"):
        CLIPTokenizer.from_pretrained(folder, padding_side="top")
    with pytest.raises(ConfigError, match="merges"):
        CLIPTokenizer({END: 0, START: 1}, ["a b"])
    with pytest.raises(InputError, match="token to add"):
        CLIPTokenizer(*clip_vocabulary()).add_tokens([3])
    (folder / "merges.txt").unlink()
    with pytest.raises(SafelightError, match=r"merges\.txt"):
        CLIPTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(RepositoryError, match=r"tokenizer\.json"):
        CLIPTokenizer.from_pretrained(folder)
