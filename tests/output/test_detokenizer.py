"""The pieces of a decoded answer, joined, are the text decoded at once; no character is ever cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternvl.output.detokenizer import Detokenizer
from ternvl.prompt.tokenizer import Tokenizer
from tests.fakes import tiny_tokenizer

REAL = Path(__file__).resolve().parents[2] / "../shared/data/internvl3-tokenizer"
TOKENIZER = tiny_tokenizer()
ID_OF_BYTE = {TOKENIZER.token_bytes(token_id)[0]: token_id for token_id in range(256)}


def pieces(tokenizer: Tokenizer, token_ids: list[int], size: int = 1) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    made = [detokenizer.decode(token_ids[start : start + size]) for start in range(0, len(token_ids), size)]
    return [*made, detokenizer.flush()]


@given(st.lists(st.integers(0, TOKENIZER.vocab_size + 3)), st.integers(1, 5))
def test_pieces_of_any_ids_join_to_the_text_decoded_at_once(token_ids: list[int], size: int) -> None:
    assert "".join(pieces(TOKENIZER, token_ids, size)) == TOKENIZER.decode(token_ids)


@given(st.binary(), st.integers(1, 5))
def test_any_bytes_decode_as_python_does(data: bytes, size: int) -> None:
    token_ids = [ID_OF_BYTE[byte] for byte in data]
    assert "".join(pieces(TOKENIZER, token_ids, size)) == data.decode("utf-8", errors="replace")


@given(st.text())
def test_text_comes_back_without_replacement_characters_on_the_way(text: str) -> None:
    made = pieces(TOKENIZER, [ID_OF_BYTE[byte] for byte in text.encode()])
    assert "".join(made) == text
    assert made[-1] == ""
    assert sum(piece.count("\ufffd") for piece in made) == text.count("\ufffd")


def test_a_character_is_held_back_until_it_is_whole() -> None:
    token_ids = [ID_OF_BYTE[byte] for byte in "é🦙".encode()]
    assert pieces(TOKENIZER, token_ids) == ["", "é", "", "", "", "🦙", ""]


def test_a_character_that_never_becomes_whole_is_replaced_at_the_end() -> None:
    token_ids = [ID_OF_BYTE[byte] for byte in "a🦙".encode()[:-1]]
    assert pieces(TOKENIZER, token_ids) == ["a", "", "", "", "\ufffd"]


def test_control_tokens_are_hidden_and_grounding_tags_are_shown() -> None:
    text = "<ref>dog</ref><box>[[1, 2, 3, 4]]</box>"
    shown = TOKENIZER.encode_text(text)
    hidden = [TOKENIZER.control_id(token) for token in ("<|im_end|>", "<|endoftext|>", "<IMG_CONTEXT>", "<img>")]
    assert "".join(pieces(TOKENIZER, [*hidden, *shown, *hidden])) == text


def test_tool_call_tags_are_shown() -> None:
    assert "".join(pieces(TOKENIZER, TOKENIZER.encode_text("<tool_call>x</tool_call>"))) == "<tool_call>x</tool_call>"


@pytest.mark.skipif(not REAL.is_dir(), reason="the InternVL3 tokenizer is not here")
def test_the_real_tokenizer() -> None:
    tokenizer = Tokenizer.from_folder(REAL)
    text = "书生·万象 🚀 😶‍🌫️ កាន់តែ\n\tnaïve <ref>x</ref> " * 3
    token_ids = tokenizer.encode_text(text)
    assert "".join(pieces(tokenizer, token_ids)) == text
    scattered = [(index * 7919) % 152_000 for index in range(3000)]
    assert "".join(pieces(tokenizer, scattered, 3)) == tokenizer.decode(scattered)
