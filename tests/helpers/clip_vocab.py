"""CLIP's real tokenizer files, built from its published byte-pair vocabulary."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

DATA = Path(__file__).parent.parent / "data" / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"


@functools.cache
def clip_vocabulary() -> tuple[dict[str, int], tuple[str, ...]]:
    """The vocabulary (49,408 entries, the ids of Stable Diffusion 1.5) and the merges (48,894 lines)."""
    merges = tuple(gzip.decompress(DATA.read_bytes()).decode("utf-8").split("\n")[1:48895])
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # Bytes that do not print stand as the characters from 256 on, in order.
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(merge.replace(" ", "") for merge in merges)]
    return {token: index for index, token in enumerate([*tokens, START, END])}, merges


def write_clip_tokenizer(folder: str | Path, pad_token: str = END) -> Path:
    """Write vocab.json, merges.txt and the two config files as Stable Diffusion 1.5 has them (2.x pads with `!`)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    named = {"bos_token": START, "eos_token": END, "unk_token": END}
    special = {name: {"content": token, **flags} for name, token in named.items()}
    typed = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    config = {
        **typed,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": pad_token,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad_token}), encoding="utf-8")
    return folder
