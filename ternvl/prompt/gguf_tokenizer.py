"""Converts the tokenizer in the metadata of a GGUF language model to the text of one `tokenizer.json`.

The metadata hold the tokens by their ids, a type for each, and the merges. Source: llama.cpp,
`convert_hf_to_gguf.py` (`get_vocab_base`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ternvl.errors import CheckpointError
from ternvl.gguf.file import GGUFFile
from ternvl.gguf.reader import TextList
from ternvl.prompt import slow_tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_TYPES = (_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED)
_SHOWN = (
    "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
"""Tokens that Qwen2.5's tokenizer does not call special; llama.cpp's converter does, because of their form."""
_STOPS = ("<|im_end|>", "<|endoftext|>")


def to_spec(folder: Path) -> tuple[str, Path]:
    """Return the text of the equivalent `tokenizer.json`, and the file that it is from.

    Raises CheckpointError if the metadata are incomplete or describe another kind of tokenizer.
    """
    file = _language_file(folder)
    model, pre = (file.metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if (model, pre) != ("gpt2", "qwen2"):
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.model is {model!r} and tokenizer.ggml.pre {pre!r}, but only 'gpt2' and "
            "'qwen2' are read; put the tokenizer.json of the model's original checkpoint into the folder."
        )
    tokens, merges = _texts(file, "tokens"), _texts(file, "merges")
    types = _types(file, len(tokens))
    _check_end(file, tokens)
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for token_id, token in enumerate(tokens) if ids[token] != token_id)
        raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens has the token {twice!r} twice.")
    vocab = {token: token_id for token, token_id in ids.items() if types[token_id] == _NORMAL}
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise CheckpointError(f"{file.path}: tokenizer.ggml.merges has {merge!r}, which are not two tokens.")
    added = {
        token: (token_id, types[token_id] == _CONTROL and token not in _SHOWN)
        for token, token_id in ids.items()
        if types[token_id] in (_CONTROL, _USER_DEFINED)
    }
    return slow_tokenizer.spec_of(vocab, merges, added), file.path


def _language_file(folder: Path) -> GGUFFile:
    opened = (GGUFFile(path) for path in sorted(folder.glob("*.gguf")))
    found = [file for file in opened if file.metadata.get("general.architecture") == "qwen2"]
    if len(found) != 1:
        names = ", ".join(file.path.name for file in found) or "none"
        raise CheckpointError(f"{folder} must hold one GGUF file with a language model (qwen2), but has {names}.")
    return found[0]


def _texts(file: GGUFFile, name: str) -> list[str]:
    found: Any = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, TextList):
        raise CheckpointError(f"{file.path} has no list tokenizer.ggml.{name}, so text cannot be encoded or decoded.")
    try:
        return found.read()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name} is not UTF-8: {error}.") from error


def _types(file: GGUFFile, count: int) -> list[int]:
    found: Any = file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(found, list) or len(found) != count:
        size = f"{len(found)} entries" if isinstance(found, list) else "not a list"
        raise CheckpointError(f"{file.path}: tokenizer.ggml.token_type is {size}, but there are {count} tokens.")
    if others := sorted({*found} - {*_TYPES}, key=str):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.token_type has {others[0]!r}, but may have {_TYPES}.")
    return found


def _check_end(file: GGUFFile, tokens: list[str]) -> None:
    """Check that the file's end of an answer is one of those that the template has."""
    end: Any = file.metadata.get("tokenizer.ggml.eos_token_id")
    if end is not None and end not in [token_id for token_id, token in enumerate(tokens) if token in _STOPS]:
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.eos_token_id is {end!r}, but must be that of {' or '.join(_STOPS)}."
        )
