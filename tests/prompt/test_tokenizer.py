"""Encoding: published vectors, control tokens that user text cannot produce, and the bytes of tokens."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternvl.errors import CheckpointError
from ternvl.prompt.template import Control, ImageSlot
from ternvl.prompt.tokenizer import TextTooLongError, Tokenizer
from tests.fakes import tiny_tokenizer

REAL = Path(__file__).resolve().parents[2] / "../shared/data/internvl3-tokenizer"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the InternVL3 tokenizer is not here")
TOKENIZER = tiny_tokenizer()
ADDED = [token.content for _, token in sorted(TOKENIZER.full.get_added_tokens_decoder().items())]
TAGS = {"<tool_call>", "</tool_call>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
FIRST_ADDED = TOKENIZER.control_id("<|endoftext|>")


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    return Tokenizer.from_folder(REAL)


@needs_real
def test_published_vectors(real: Tokenizer) -> None:
    vectors = json.loads((REAL / "vectors.json").read_text(encoding="utf-8"))
    assert len(vectors) == 47
    assert [real.encode_text(vector["text"]) for vector in vectors] == [vector["ids"] for vector in vectors]


@needs_real
def test_official_ids(real: Tokenizer) -> None:
    assert (real.img_id, real.img_end_id, real.context_id) == (151665, 151666, 151667)
    assert real.stop_ids == (151645, 151643)
    assert real.vocab_size == 151674


@needs_real
def test_the_tiny_tokenizer_has_the_official_added_tokens_in_order(real: Tokenizer) -> None:
    official = sorted(real.full.get_added_tokens_decoder().items())
    ours = sorted(TOKENIZER.full.get_added_tokens_decoder().items())
    assert [(token.content, token.special) for _, token in ours] == [
        (token.content, token.special) for _, token in official
    ]


@pytest.mark.parametrize("token", [token for token in ADDED if token not in TAGS])
def test_control_tokens_in_text_stay_text(token: str) -> None:
    for text in (token, f"a{token}b", f" {token}\n{token}", token[:3] + token):
        ids = TOKENIZER.encode_text(text)
        assert max(ids) < FIRST_ADDED
        assert TOKENIZER.decode(ids) == text


@given(st.lists(st.sampled_from([*ADDED, "<", "|", "img", "\u0338", "é", "x", " ", "\n"])).map("".join))
def test_no_text_makes_a_control_token(text: str) -> None:
    allowed = {TOKENIZER.control_id(tag) for tag in TAGS}
    assert {token_id for token_id in TOKENIZER.encode_text(text) if token_id >= FIRST_ADDED} <= allowed


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_tags_of_questions_and_answers_are_one_token(tag: str) -> None:
    assert TOKENIZER.encode_text(f"a{tag}b") == [
        *TOKENIZER.encode_text("a"), TOKENIZER.control_id(tag), *TOKENIZER.encode_text("b")
    ]  # fmt: skip


def test_pieces() -> None:
    ids = TOKENIZER.encode([Control("<|im_start|>"), "t", "he", ImageSlot(0), "\n", ImageSlot(1)], [2, 1])
    the, newline = TOKENIZER.encode_text("the"), TOKENIZER.encode_text("\n")
    img, end, context = TOKENIZER.img_id, TOKENIZER.img_end_id, TOKENIZER.context_id
    start = TOKENIZER.control_id("<|im_start|>")
    assert len(the) == 1  # pieces of one text are merged before they are encoded
    assert ids == [start, *the, img, context, context, end, *newline, img, context, end]


def test_decode_hides_only_control_tokens() -> None:
    ids = TOKENIZER.encode([Control("<|im_start|>"), "hi <ref>x</ref>", Control("<|im_end|>"), ImageSlot(0)], [3])
    assert TOKENIZER.decode(ids) == "hi <ref>x</ref>"


def test_bytes_of_tokens() -> None:
    assert sorted(TOKENIZER.token_bytes(token_id) for token_id in range(256)) == [bytes([byte]) for byte in range(256)]
    assert [TOKENIZER.token_bytes(token_id) for token_id in TOKENIZER.encode_text(" the\n")] == [b" the", b"\n"]
    assert TOKENIZER.token_bytes(TOKENIZER.context_id) == b"<IMG_CONTEXT>"
    assert TOKENIZER.token_bytes(TOKENIZER.vocab_size) == b""


def test_bytes_of_an_added_token_that_is_not_written_in_byte_characters() -> None:
    spec = json.loads(TOKENIZER.full.to_str())
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": TOKENIZER.vocab_size, "content": "<图>"})
    assert Tokenizer(json.dumps(spec)).token_bytes(TOKENIZER.vocab_size) == "<图>".encode()


def test_unusable_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        Tokenizer.from_folder(tmp_path)
    spec = json.loads(TOKENIZER.full.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != "<IMG_CONTEXT>"]
    with pytest.raises(CheckpointError, match="<IMG_CONTEXT>"):
        Tokenizer(json.dumps(spec))


def test_a_checkpoint_s_truncation_and_padding_are_ignored() -> None:
    spec = json.loads(TOKENIZER.full.to_str())
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    assert Tokenizer(json.dumps(spec)).encode_text("one two three") == TOKENIZER.encode_text("one two three")


class CountedTokenizer(Tokenizer):
    """Counts the characters that are encoded."""

    num_characters = 0

    def _ids(self, text: str) -> list[int]:
        self.num_characters += len(text)
        return super()._ids(text)


def long_texts() -> list[str]:
    rng = random.Random(3)
    words = ["word", "it's", "x", "12", "—", "上海", "don't", "A", "\n"]
    mixed = [
        "".join(rng.choice("abcdefg ABC 0123 \n\t'é上<>.,-_=  ") for _ in range(size)) for size in (40_000, 150_000)
    ]
    return [*mixed, " ".join(rng.choice(words) for _ in range(40_000)), "x " * 50_000 + "<box>" + "a b " * 30_000]


@pytest.mark.parametrize("text", long_texts())
def test_a_long_text_is_cut_without_changing_a_token(text: str) -> None:
    parts = re.split("(<box>)", text)
    (box,) = TOKENIZER.encode_text("<box>")
    whole = [
        TOKENIZER._plain.encode(part, add_special_tokens=False).ids if part != "<box>" else [box] for part in parts
    ]
    assert TOKENIZER.encode_text(text) == [token_id for ids in whole for token_id in ids]
    assert TOKENIZER.encode_text(text, limit=10**7) == TOKENIZER.encode_text(text)


@pytest.mark.parametrize("text", ["hello world " * 500_000, "a" * 6_000_000, "上" * 6_000_000, "<box>" * 1_200_000])
def test_a_text_over_the_limit_is_given_up_early(text: str) -> None:
    tokenizer = CountedTokenizer(TOKENIZER.full.to_str())
    with pytest.raises(TextTooLongError) as error:
        tokenizer.encode_text(text, limit=1000)
    assert error.value.num_tokens > 1000
    assert tokenizer.num_characters <= 262_144


def test_a_run_without_a_place_to_cut_keeps_its_tokens() -> None:
    text = "=" * 700_000
    whole = TOKENIZER._plain.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.encode_text(text, limit=10**6) == TOKENIZER.encode_text(text) == whole
