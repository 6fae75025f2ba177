"""A tokenizer from vocab.json, merges.txt and added_tokens.json equals the one that transformers makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import Qwen2Tokenizer

from ternvl.errors import CheckpointError
from ternvl.prompt.tokenizer import Tokenizer
from tests.fakes import tiny_tokenizer

REAL = Path(__file__).resolve().parents[2] / "../shared/data/internvl3-tokenizer"
TEXTS = ["Hello, world!", "it's 1234 \n\n  x", "Äpfel e\u0301 你好 🚀", "", "don't  STOP\t", "<img> and <|im_end|>"]


def write_slow_files(spec: str, folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Write a fast tokenizer as the three files of a slow tokenizer; return its vocabulary and merges."""
    parts = json.loads(spec)
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in parts["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(parts["model"]["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")
    added = {token["content"]: token["id"] for token in parts["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    return parts["model"]["vocab"], merges


def test_equals_transformers(tmp_path: Path) -> None:
    vocab, merges = write_slow_files(tiny_tokenizer().full.to_str(), tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    theirs = Qwen2Tokenizer(vocab=vocab, merges=merges)
    for text in TEXTS[:-1]:
        assert ours.encode_text(text) == theirs.encode(text, add_special_tokens=False), text
    assert ours.decode(ours.encode_text(TEXTS[-1])) == TEXTS[-1]
    assert ours.control_id("<IMG_CONTEXT>") == tiny_tokenizer().control_id("<IMG_CONTEXT>")


@pytest.mark.skipif(not REAL.is_dir(), reason="the InternVL3 tokenizer is not here")
def test_equals_the_published_one(tmp_path: Path) -> None:
    write_slow_files((REAL / "tokenizer.json").read_text(encoding="utf-8"), tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(REAL)
    for vector in json.loads((REAL / "vectors.json").read_text(encoding="utf-8")):
        assert ours.encode_text(vector["text"]) == vector["ids"]
    assert ours.stop_ids == theirs.stop_ids
    assert theirs.control_id("<tool_call>") not in ours.hidden_ids


@pytest.mark.parametrize(
    ("name", "text", "said"), [("vocab.json", "{", "not JSON"), ("added_tokens.json", "[1]", "map")]
)
def test_broken_files(tmp_path: Path, name: str, text: str, said: str) -> None:
    write_slow_files(tiny_tokenizer().full.to_str(), tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=said) as refusal:
        Tokenizer.from_folder(tmp_path)
    assert name in str(refusal.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"])
def test_files_that_are_not_text(tmp_path: Path, name: str) -> None:
    write_slow_files(tiny_tokenizer().full.to_str(), tmp_path)
    (tmp_path / name).write_bytes(b"\xff\xfe\x80")
    with pytest.raises(CheckpointError, match=f"{name} cannot be read as text"):
        Tokenizer.from_folder(tmp_path)
