"""Tokenizers on the `tokenizers` library: text to ids and back, with the ids that transformers gives."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ...configuration import check_known, read_json, write_atomically, write_json
from ...errors import ConfigError, InputError, RepositoryError, check_choice
from ...outputs import Batch

# The order in which transformers registers them; it decides which spelling of a repeated token wins.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Options of transformers' tokenizers that change nothing here, and options that may be given only as "off".
_WITHOUT_EFFECT = ("use_fast", "trust_remote_code", "verbose", "clean_up_tokenization_spaces")
_ONLY_OFF = (
    "text_pair",
    "stride",
    "is_split_into_words",
    "split_special_tokens",
    "return_offsets_mapping",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_token_type_ids",
)
_PADDING: dict[bool | str | None, str | None] = {
    **dict.fromkeys((False, None, "do_not_pad")),
    **dict.fromkeys((True, "longest"), "longest"),
    "max_length": "max_length",
}
_TRUNCATION: dict[bool | str | None, bool] = {
    **dict.fromkeys((False, None, "do_not_truncate"), False),
    **dict.fromkeys((True, "longest_first", "only_first"), True),
}
_OPTIONS = ("extra_special_tokens", "padding_side", "truncation_side", "config")
# Entries of tokenizer_config.json that tell where the file came from.
_DROPPED = ("tokenizer_class", "name_or_path", "special_tokens_map_file", "backend", "is_local", "local_files_only")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")

T = TypeVar("T", bound="Tokenizer")


class Tokenizer:
    """What every tokenizer does once a subclass has built the backend.

    Calling one is safe from many threads: truncation and padding are done here, on lists, and never set on the shared
    backend. Only `add_tokens`, `add_special_tokens` and assigning a special token change the object.
    """

    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    pad_token: str | None = None
    padding_side = "right"
    truncation_side = "right"
    model_max_length: int

    def __init__(
        self,
        backend: Any,
        model_max_length: int,
        named: Mapping[str, Any],
        added: Iterable[Any] = (),
        extra_special_tokens: Iterable[Any] = (),
        padding_side: str = "right",
        truncation_side: str = "right",
        config: Mapping[str, Any] | None = None,
    ):
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            check_choice(name, side, ("left", "right"))
            setattr(self, name, side)
        self._backend = backend
        self._extra = [_content(token) for token in extra_special_tokens]
        self.model_max_length = model_max_length
        self.config = dict(config or {})  # whatever else tokenizer_config.json held, for the way back
        added = list(added)
        known = {_content(token) for token in added}
        for name in _NAMED:
            if named.get(name) is not None:
                setattr(self, name, _content(named[name]))
                added += [named[name]] if _content(named[name]) not in known else []
        added += [token for token in extra_special_tokens if _content(token) not in known]
        special = set(self.all_special_tokens)
        backend.add_tokens([_added_token(token, _content(token) in special) for token in added])

    # Ids and tokens

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """The ids put before and after every text."""
        return [], []

    @property
    def bos_token_id(self) -> int | None:
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._id("unk_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._id("pad_token")

    def _id(self, name: str) -> int | None:
        token = getattr(self, name)
        return None if token is None else self._backend.token_to_id(token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in _NAMED if getattr(self, name, None) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        return [self._backend.token_to_id(token) for token in self.all_special_tokens]

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without tokens added later; `len(tokenizer)` counts those too."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        return self._backend.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        return self.added_tokens_encoder

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The ids of the tokens that are matched as a whole: the special ones and those added later."""
        return {token.content: index for index, token in sorted(self._backend.get_added_tokens_decoder().items())}

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or of each of a list; that of the unknown token for what is not in the vocabulary."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._backend.token_to_id(tokens)
        return self.unk_token_id if index is None else index

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each of a list."""
        if isinstance(ids, int):
            return self._backend.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._backend.id_to_token(int(index)) for index in ids if int(index) not in skipped]

    def add_tokens(self, new_tokens: str | Sequence[Any], special_tokens: bool = False) -> int:
        """Add whole-word tokens (strings or `tokenizers.AddedToken`); returns how many were new."""
        single = isinstance(new_tokens, str) or not isinstance(new_tokens, Sequence)
        tokens = [new_tokens] if single else list(new_tokens)
        return self._backend.add_tokens([_added_token(token, special=special_tokens) for token in tokens])

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Any]) -> int:
        """Add or replace special tokens: `{"pad_token": "!", "additional_special_tokens": ["<s>"]}`."""
        lists = ("additional_special_tokens", "extra_special_tokens")
        check_known("add_special_tokens", special_tokens_dict, (*_NAMED, *lists))
        count = 0
        # The named ones first, as transformers does: the order decides the ids.
        for name, value in sorted(special_tokens_dict.items(), key=lambda item: item[0] in lists):
            tokens = list(value) if name in lists else [value]
            count += self.add_tokens(tokens, special_tokens=True)
            if name in lists:
                self._extra = list(dict.fromkeys([*self._extra, *map(_content, tokens)]))
            else:
                setattr(self, name, _content(value))
        return count

    # Text to ids

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of one text."""
        before, after = self._special_ids() if add_special_tokens else ([], [])
        tokens = self._backend.encode(text, add_special_tokens=False).tokens
        return [*self.convert_ids_to_tokens(before), *tokens, *self.convert_ids_to_tokens(after)]

    def encode(self, text: str, add_special_tokens: bool = True, **options: Any) -> list[int]:
        """The ids of one text."""
        return self(text, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_length: bool = False,
        return_attention_mask: bool = True,
        pad_to_multiple_of: int | None = None,
        **options: Any,
    ) -> Batch:
        """Ids and attention mask of one text or a list of texts.

        `padding`: False, True (or "longest"), or "max_length"; `max_length` counts the special tokens and defaults to
        `model_max_length`. As in transformers, a `max_length` with neither padding nor truncation given truncates.
        `return_tensors`: None (lists), "pt" or "np"; tensors are (batch, tokens), int64. Raises `InputError` for text
        that is no string and for rows of unequal length that should become a tensor.
        """
        check_known(type(self).__name__, options, (*_ONLY_OFF, *_WITHOUT_EFFECT))
        for name in _ONLY_OFF:
            if options.get(name):
                raise InputError(f"{type(self).__name__} does not support {name}={options[name]!r}; leave it out")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not all(isinstance(item, str) for item in texts):
            raise InputError(f"text must be a string or a list of strings, not {_kind(text)}")
        cut = _option("truncation", truncation, _TRUNCATION) or (truncation is None and not padding)
        default = None if truncation is None else self.model_max_length
        limit = (default if max_length is None else max_length) if cut else None
        rows = [self._ids(item, add_special_tokens, limit) for item in texts]
        encoding = self._pad(rows, padding, max_length, pad_to_multiple_of)
        if not return_attention_mask:
            del encoding["attention_mask"]
        if return_length:
            encoding["length"] = [len(row) for row in encoding["input_ids"]]
        if isinstance(text, str) and return_tensors is None:
            return Batch({name: value if name == "length" else value[0] for name, value in encoding.items()})
        return _to_tensors(encoding, return_tensors)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str | None = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> Batch:
        """Pad ids made earlier: `{"input_ids": [[…], …]}` or a list of single encodings."""
        if isinstance(encoded_inputs, Mapping):
            rows = encoded_inputs["input_ids"]
        else:
            rows = [item["input_ids"] for item in encoded_inputs]
        rows = [row.tolist() if hasattr(row, "tolist") else list(row) for row in rows]
        return _to_tensors(self._pad(rows, padding, max_length, pad_to_multiple_of), return_tensors)

    def _ids(self, text: str, add_special_tokens: bool, limit: int | None) -> list[int]:
        before, after = self._special_ids() if add_special_tokens else ([], [])
        ids = self._backend.encode(text, add_special_tokens=False).ids
        if limit is not None:
            room = limit - len(before) - len(after)
            if room < 0:
                raise InputError(f"max_length is {limit}, but the special tokens alone take {limit - room}")
            ids = ids[:room] if self.truncation_side == "right" else ids[max(len(ids) - room, 0) :]
        return [*before, *ids, *after]

    def _pad(
        self, rows: list[list[int]], padding: bool | str | None, max_length: int | None, multiple: int | None
    ) -> Batch:
        strategy = _option("padding", padding, _PADDING)
        length = max(map(len, rows), default=0)
        if strategy == "max_length":
            length = self.model_max_length if max_length is None else max_length
        length = -(-length // multiple) * multiple if multiple else length
        missing = [max(0, length - len(row)) if strategy else 0 for row in rows]
        if any(missing) and self.pad_token_id is None:
            raise InputError(f"padding needs a pad token, and this {type(self).__name__} has none; set `pad_token`")
        right = self.padding_side == "right"
        ids, mask = [], []
        for row, count in zip(rows, missing, strict=True):
            fill, zeros, ones = [self.pad_token_id] * count, [0] * count, [1] * len(row)
            ids.append([*row, *fill] if right else [*fill, *row])
            mask.append([*ones, *zeros] if right else [*zeros, *ones])
        return Batch(input_ids=ids, attention_mask=mask)

    # Ids to text

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        """The text of a row of ids, or of each row of a batch (list, array or tensor)."""
        check_known(f"{type(self).__name__}.decode", options, _WITHOUT_EFFECT)
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        if ids and not isinstance(ids[0], int):
            return [self.decode(row, skip_special_tokens) for row in ids]
        return self._text(ids, skip_special_tokens)

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """The texts of several rows of ids."""
        decoded = self.decode(sequences, skip_special_tokens, **options)
        return [decoded] if isinstance(decoded, str) else decoded

    def __repr__(self) -> str:
        named = ", ".join(f"{name}={token!r}" for name, token in self.special_tokens_map.items())
        return f"{type(self).__name__}({len(self)} tokens, model_max_length={self.model_max_length}, {named})"


class CLIPTokenizer(Tokenizer):
    """CLIP's byte-level byte-pair tokenizer (Radford et al. 2021, arXiv:2103.00020, section 2.4).

    `vocab` and `merges` are a dict and a list of pairs, or the paths of `vocab.json` and `merges.txt`. Every text
    becomes `<|startoftext|>`, the ids of its lower-cased words, `<|endoftext|>`. Raises `ConfigError` for a vocabulary
    without the special tokens.
    """

    def __init__(
        self,
        vocab: str | os.PathLike | Mapping[str, int],
        merges: str | os.PathLike | Sequence[Any],
        unk_token: Any = "<|endoftext|>",
        bos_token: Any = "<|startoftext|>",
        eos_token: Any = "<|endoftext|>",
        pad_token: Any = "<|endoftext|>",
        *,
        model_max_length: int = 77,
        added: Iterable[Any] = (),
        **options: Any,
    ):
        check_known(type(self).__name__, options, _OPTIONS)
        vocab = dict(vocab) if isinstance(vocab, Mapping) else read_json(vocab)
        merges = _read_merges(merges) if isinstance(merges, (str, os.PathLike)) else merges
        pairs: list[Any] = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
        named = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        super().__init__(_clip_backend(vocab, pairs, _content(unk_token)), model_max_length, named, added, **options)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        return [self.bos_token_id], [self.eos_token_id]  # type: ignore[list-item]

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        return super()._text(ids, skip_special_tokens).replace("</w>", " ").strip()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **options: Any) -> CLIPTokenizer:
        """Read `tokenizer.json`, or `vocab.json` and `merges.txt`, from a folder or a repository.

        `options` are those of the repository (`subfolder`, `revision`, `cache_dir`, …) and constructor arguments that
        override the files'. Raises `RepositoryError` where neither layout is there.
        """
        from ...repository.hub import Source  # the hub client is needed only by those who load

        source, overrides = Source.from_options(pretrained_model_name_or_path, options)
        overrides = {name: value for name, value in overrides.items() if name not in _WITHOUT_EFFECT}
        optional = [source.find(f"{name}.json") for name in ("tokenizer_config", "special_tokens_map", "added_tokens")]
        config, special, extra = ({} if path is None else read_json(path) for path in optional)
        whole = source.find("tokenizer.json")
        if whole is not None:
            content = read_json(whole)
            try:
                vocab, merges, stored = content["model"]["vocab"], content["model"]["merges"], content["added_tokens"]
            except (KeyError, TypeError) as error:
                raise RepositoryError(f"{whole} is no byte-pair tokenizer: it lacks {error}") from error
        else:
            vocab, merges, stored = read_json(source.file("vocab.json")), source.file("merges.txt"), []
        names = ("unk_token", "bos_token", "eos_token", "pad_token", "model_max_length", *_OPTIONS)
        check_known(f"{cls.__name__}.from_pretrained", overrides, (*names, *Source.option_names(), *_WITHOUT_EFFECT))
        settings, added = _merged_config(config, special, extra, stored)
        arguments = {name: settings.pop(name) for name in names if settings.get(name) is not None}
        return cls(vocab, merges, **{**arguments, "added": added, "config": settings, **overrides})

    def save_pretrained(self, save_directory: str | os.PathLike) -> tuple[str, ...]:
        """Write vocab.json, merges.txt and the config files, which every version of transformers reads."""
        folder = Path(save_directory)
        if folder.is_file():
            raise RepositoryError(f"{os.fspath(save_directory)!r} is a file; save_pretrained needs a folder")
        model = json.loads(self._backend.to_str())["model"]
        vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        decoder = self._backend.get_added_tokens_decoder()
        config = {
            **self.config,
            **self.special_tokens_map,
            "added_tokens_decoder": {str(index): _to_dict(decoder[index]) for index in sorted(decoder)},
            "additional_special_tokens": self._extra,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "tokenizer_class": "CLIPTokenizer",
        }
        texts = {
            "vocab.json": json.dumps(vocab, ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *lines, ""]),
        }
        for name, text in texts.items():
            write_atomically(folder / name, functools.partial(Path.write_text, data=text, encoding="utf-8"))
        write_json(folder / "tokenizer_config.json", config)
        write_json(folder / "special_tokens_map.json", self.special_tokens_map)
        names = (*texts, "tokenizer_config.json", "special_tokens_map.json")
        return tuple(os.fspath(folder / name) for name in names)


def _clip_backend(vocab: dict[str, int], merges: list[tuple[str, str]], unk_token: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        model = models.BPE(vocab=vocab, merges=merges, unk_token=unk_token, end_of_word_suffix="</w>")
    except Exception as error:  # the library raises a bare Exception
        raise ConfigError(f"the tokenizer's vocabulary and merges do not fit together ({error})") from error
    backend = Tokenizer(model)
    lines_and_tabs = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), lines_and_tabs, normalizers.Lowercase()])
    words = (
        r"<\|startoftext\|>|<\|endoftext\|>"  # special tokens
        r"|'s|'t|'re|'ve|'m|'ll|'d"  # English contractions
        r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # words, single digits, runs of anything else
    )
    split = pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _merged_config(
    config: dict[str, Any], special: dict[str, Any], extra: dict[str, int], stored: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[Any]]:
    """Settings and added tokens: tokenizer_config.json, special_tokens_map.json, added_tokens.json, tokenizer.json.

    Where the first lists `added_tokens_decoder`, the other three are its older spellings and are not read.
    """
    config = {name: value for name, value in config.items() if name not in _DROPPED}
    decoder = config.pop("added_tokens_decoder", None)
    if decoder is None:
        config.update(special)
        named = {_content(config[name]) for name in _NAMED if config.get(name)}
        later = {i: {"content": c, "special": c in named, "normalized": c not in named} for c, i in extra.items()}
        decoder = {**later, **{token["id"]: token for token in stored}}
    added = [decoder[index] for index in sorted(decoder, key=int)]
    contents = {_content(token): token for token in added}
    for name in _NAMED:  # a name in the config, its flags in the list
        if config.get(name) is not None:
            config[name] = contents.get(_content(config[name]), config[name])
    older = config.pop("additional_special_tokens", None)
    extras = config.pop("extra_special_tokens", None) or older or []
    config["extra_special_tokens"] = list(extras.values()) if isinstance(extras, Mapping) else extras
    # A file from before the setting was written says "no limit" with a number of 31 digits.
    if config.get("model_max_length", 0) > 1e20:
        del config["model_max_length"]
    return config, added


def _content(token: Any) -> str:
    """The text of a token given as a string, as a dict from a config, or as a `tokenizers.AddedToken`."""
    return token["content"] if isinstance(token, Mapping) else getattr(token, "content", token)


def _added_token(token: Any, special: bool) -> Any:
    from tokenizers import AddedToken

    if isinstance(token, Mapping):
        flags = {name: token[name] for name in _FLAGS if name in token}
        return AddedToken(token["content"], special=special or token.get("special", False), **flags)
    if not isinstance(token, (str, AddedToken)) or not _content(token):
        raise InputError(f"a token to add must be a non-empty string or a tokenizers.AddedToken, not {token!r}")
    return AddedToken(token, special=special, normalized=not special) if isinstance(token, str) else token


def _to_dict(token: Any) -> dict[str, Any]:
    return {"content": token.content, "special": token.special, **{name: getattr(token, name) for name in _FLAGS}}


def _read_merges(path: str | os.PathLike) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise RepositoryError(f"there is no file {os.fspath(path)!r}") from None
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{os.fspath(path)!r} is not UTF-8 text ({error})") from error
    merges = [line.rstrip("\r") for line in lines]
    return [line for line in merges if line and not line.startswith("#version")]


def _to_tensors(encoding: Batch, kind: str | None) -> Batch:
    if kind is None:
        return encoding
    check_choice("return_tensors", kind, ("pt", "np"), InputError)
    lengths = sorted({len(row) for row in encoding["input_ids"]})
    if len(lengths) > 1:
        raise InputError(
            f"texts of {lengths[0]} to {lengths[-1]} tokens do not fit one tensor; use padding=True or "
            f'padding="max_length", with truncation=True'
        )
    arrays = {name: np.asarray(value, dtype=np.int64) for name, value in encoding.items()}
    return Batch({name: torch.from_numpy(a) if kind == "pt" else a for name, a in arrays.items()})


def _option(name: str, value: Any, meanings: Mapping[Any, Any]) -> Any:
    if not isinstance(value, (str, bool, type(None))) or value not in meanings:
        raise InputError(f"{name} is {value!r}; valid are {', '.join(repr(key) for key in meanings)}")
    return meanings[value]


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list that holds {next(type(item).__name__ for item in value if not isinstance(item, str))}"
    return type(value).__name__
