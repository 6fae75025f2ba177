"""A tokenizer from the metadata of a GGUF file equals the `tokenizer.json` that the file was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ternvl.checkpoint import source
from ternvl.errors import CheckpointError
from ternvl.prompt.tokenizer import Tokenizer
from tests.checkpoint.gguf_files import CONFIG, language_metadata, plain, vision_metadata, write
from tests.fakes import tiny_tokenizer

REAL = Path(__file__).resolve().parents[2] / "../shared/data/internvl3-tokenizer"
TEXTS = ["Hello, world!", "it's 1234 \n\n  x", "Äpfel e\u0301 你好 🚀", "", "don't  STOP\t", "<img> and <|im_end|>"]
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def metadata_of(spec: str) -> dict[str, Any]:
    """What llama.cpp's converter writes for a `tokenizer.json`: every token of the form <|...|> is a control token."""
    parts = json.loads(spec)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in parts["model"]["merges"]]
    added = {token["id"]: token for token in parts["added_tokens"]}
    by_id = {token_id: token for token, token_id in parts["model"]["vocab"].items()}
    tokens, types = [], []
    for token_id in range(max([*by_id, *added]) + 1):
        if token_id in added:
            token = added[token_id]["content"]
            types.append(CONTROL if added[token_id]["special"] or token.startswith("<|") else USER_DEFINED)
        else:
            token = by_id.get(token_id, f"[PAD{token_id}]")
            types.append(NORMAL if token_id in by_id else UNUSED)
        tokens.append(token)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": "{{ messages }}",
    }


def folder_with(folder: Path, metadata: dict[str, Any]) -> Path:
    """Both files of a model; the language model's has these metadata and no tensors."""
    folder.mkdir(exist_ok=True)
    write(folder / "model.gguf", {"general.architecture": "qwen2", **metadata}, {})
    write(folder / "mmproj.gguf", vision_metadata(), {})
    return folder


def check_equal(ours: Tokenizer, theirs: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        ids = theirs.encode_text(text)
        assert ours.encode_text(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
    assert ours.vocab_size == theirs.vocab_size
    for token_id in range(theirs.vocab_size):
        assert ours.full.id_to_token(token_id) == theirs.full.id_to_token(token_id)
        assert ours.token_bytes(token_id) == theirs.token_bytes(token_id)
    assert ours.hidden_ids == theirs.hidden_ids
    assert ours.stop_ids == theirs.stop_ids
    assert (ours.context_id, ours.img_id, ours.img_end_id) == (theirs.context_id, theirs.img_id, theirs.img_end_id)


def test_equals_the_tokenizer_json(tmp_path: Path) -> None:
    theirs = tiny_tokenizer()
    ours = Tokenizer.from_folder(folder_with(tmp_path, metadata_of(theirs.full.to_str())))
    check_equal(ours, theirs, TEXTS)


@pytest.mark.skipif(not REAL.is_dir(), reason="the InternVL3 tokenizer is not here")
def test_equals_the_published_one_written_by_llama_cpps_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    metadata = metadata_of((REAL / "tokenizer.json").read_text(encoding="utf-8"))
    folder_with(tmp_path, {})
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_published(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the InternVL3 tokenizer is not here")
def test_equals_the_published_one(tmp_path: Path) -> None:
    check_published(folder_with(tmp_path, metadata_of((REAL / "tokenizer.json").read_text(encoding="utf-8"))))


def check_published(folder: Path) -> None:
    ours, theirs = Tokenizer.from_folder(folder), Tokenizer.from_folder(REAL)
    vectors = json.loads((REAL / "vectors.json").read_text(encoding="utf-8"))
    assert len(vectors) > 40
    for vector in vectors:
        assert ours.encode_text(vector["text"]) == vector["ids"]
        assert ours.decode(vector["ids"]) == theirs.decode(vector["ids"])
    check_equal(ours, theirs, TEXTS)


def test_a_tokenizer_json_beside_the_files_goes_before_them(tmp_path: Path) -> None:
    folder_with(tmp_path, {"tokenizer.ggml.model": "llama"})
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().full.to_str(), encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).stop_ids == tiny_tokenizer().stop_ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama' and tokenizer.ggml.pre 'qwen2', but only 'gpt2' and"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre 'llama-bpe'"),
        ({"tokens": 3}, "has no list tokenizer.ggml.tokens"),
        ({"merges": 3}, "has no list tokenizer.ggml.merges"),
        ({"token_type": [1, 1]}, "tokenizer.ggml.token_type is 2 entries, but there are"),
        ({"token_type": 3}, "tokenizer.ggml.token_type is not a list"),
        ({"eos_token_id": 0}, "tokenizer.ggml.eos_token_id is 0, but must be that of <|im_end|> or <|endoftext|>"),
        ({"merges": ["no merge"]}, "tokenizer.ggml.merges has 'no merge', which are not two tokens"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    metadata = metadata_of(tiny_tokenizer().full.to_str())
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    assert message in refusal(folder_with(tmp_path, metadata))


def test_single_tokens_that_are_wrong_are_named(tmp_path: Path) -> None:
    metadata = metadata_of(tiny_tokenizer().full.to_str())
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    twice = metadata | {"tokenizer.ggml.tokens": [tokens[1], *tokens[1:]]}
    assert f"has the token {tokens[1]!r} twice" in refusal(folder_with(tmp_path, twice))
    unknown = metadata | {"tokenizer.ggml.token_type": [6, *types[1:]]}
    assert "tokenizer.ggml.token_type has 6, but may have (1, 3, 4, 5)" in refusal(folder_with(tmp_path, unknown))
    content = (folder_with(tmp_path, metadata) / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content.replace(b"<IMG_CONTEXT>", b"<IMG_CONTEX\xff>"))
    assert "tokenizer.ggml.tokens is not UTF-8" in refusal(tmp_path)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)
    assert str(folder / "model.gguf") in str(caught.value)
    return str(caught.value)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    metadata = language_metadata(CONFIG.language) | metadata_of(tiny_tokenizer().full.to_str())
    write(tmp_path / "model.gguf", metadata, {"token_embd.weight": plain(torch.zeros(61, 64))})
    write(tmp_path / "mmproj.gguf", vision_metadata(), {})
    with pytest.raises(CheckpointError, match=r"tokens, but token_embd\.weight 61 rows\.$"):
        source.load_config(tmp_path)
