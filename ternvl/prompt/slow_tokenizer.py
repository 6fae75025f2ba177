"""Converts the three files of a slow Qwen2 tokenizer to the text of one `tokenizer.json`.

The original InternVL3 checkpoints may have only `vocab.json`, `merges.txt` and `added_tokens.json`. The rest of the
fast tokenizer is fixed: NFC, Qwen2's split, byte-level BPE. Source: transformers, `Qwen2Converter`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ternvl.errors import CheckpointError

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_FILES = ("vocab.json", "merges.txt", "added_tokens.json")
_PLAIN_ADDED = ("<tool_call>", "</tool_call>")
"""Added tokens that are not special, so they are decoded as text."""


def is_there(folder: Path) -> bool:
    """Return whether a folder has all three files."""
    return all((folder / name).is_file() for name in _FILES)


def to_spec(folder: Path) -> str:
    """Return the text of the equivalent `tokenizer.json`. Raises CheckpointError if a file is broken."""
    vocab, added = _read_ids(folder / "vocab.json"), _read_ids(folder / "added_tokens.json")
    lines = read_text(folder / "merges.txt").splitlines()
    merges = [line for line in lines if line and not line.startswith("#version")]
    return spec_of(vocab, merges, {token: (token_id, token not in _PLAIN_ADDED) for token, token_id in added.items()})


def spec_of(vocab: Mapping[str, int], merges: Iterable[str], added: Mapping[str, tuple[int, bool]]) -> str:
    """Return the text of the `tokenizer.json` of a Qwen2 tokenizer.

    `merges` are pairs with a space between them; `added` are the tokens outside the vocabulary, each with its id and
    whether it is special.
    """
    ordered = sorted(added, key=lambda token: added[token])
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(token, *added[token]) for token in ordered],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                _BYTE_LEVEL,
            ],
        },
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": [merge.split(" ") for merge in merges]},
    }
    return json.dumps(spec, ensure_ascii=False)


def read_text(path: Path) -> str:
    """Return the text of a tokenizer's file. Raises CheckpointError if it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as text: {error}.") from error


def _read_ids(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(ids, dict) or not all(isinstance(value, int) for value in ids.values()):
        raise CheckpointError(f"{path} must map each token to its id.")
    return ids


def _added_token(content: str, token_id: int, is_special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": is_special}
