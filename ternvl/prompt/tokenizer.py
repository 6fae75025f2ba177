"""Converts text to token ids and back with the `tokenizers` library.

Only the template's own pieces become control tokens. In user text, no added tokens are recognised except those that
have a meaning in a question or an answer (grounding and tool-call tags), as in the official tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from ternvl.errors import CheckpointError
from ternvl.prompt import slow_tokenizer
from ternvl.prompt.template import IM_END, Control, Piece

IMG, IMG_END, IMG_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
END_OF_TEXT = "<|endoftext|>"
_TEXT_TAGS = ("<tool_call>", "</tool_call>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")


def _byte_of_character() -> dict[str, int]:
    """Return byte-level BPE's map of characters to bytes: visible Latin-1 as itself, others from U+0100 on (GPT-2)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _without_added_tokens(full: FastTokenizer) -> FastTokenizer:
    """Return a tokenizer that shares the model of `full`, because reading the model takes most of the start-up time."""
    plain = FastTokenizer(full.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (value := getattr(full, part)) is not None:
            setattr(plain, part, value)
    return plain


class Tokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(self, spec: str, *, name: str = "tokenizer.json") -> None:
        """`spec` is the text of a `tokenizer.json`, `name` is used in errors.

        Raises CheckpointError if the text is broken or lacks a token that the template needs.
        """
        try:
            self.full = FastTokenizer.from_str(spec)
            self._plain = _without_added_tokens(self.full)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{name} cannot be read as a tokenizer: {error}") from error
        self._name = name
        self.context_id = self.control_id(IMG_CONTEXT)
        self.img_id = self.control_id(IMG)
        self.img_end_id = self.control_id(IMG_END)
        self.stop_ids = (self.control_id(IM_END), self.control_id(END_OF_TEXT))
        tags = {tag: self.full.token_to_id(tag) for tag in _TEXT_TAGS}
        self._tags = {tag: token_id for tag, token_id in tags.items() if token_id is not None}
        self._tag_pattern = re.compile("(" + "|".join(map(re.escape, self._tags)) + ")") if self._tags else None
        shown_tags = set(self._tags.values())
        added = self.full.get_added_tokens_decoder()
        self.hidden_ids = frozenset(i for i, token in added.items() if token.special and i not in shown_tags)
        """Ids that are never shown in an answer: all special tokens except the grounding tags, which are part of it."""

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` or the files of a slow tokenizer. Raises CheckpointError if there is neither."""
        path = folder / "tokenizer.json"
        if path.is_file():
            return cls(slow_tokenizer.read_text(path), name=str(path))
        if slow_tokenizer.is_there(folder):
            return cls(slow_tokenizer.to_spec(folder), name=f"the tokenizer in {folder}")
        raise CheckpointError(f"{folder} has no tokenizer.json, so text cannot be encoded or decoded.")

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including added tokens."""
        return int(self.full.get_vocab_size(with_added_tokens=True))

    def control_id(self, token: str) -> int:
        """Return the id of a control token. Raises CheckpointError if the tokenizer lacks it."""
        token_id = self.full.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"{self._name} has no token {token}, which InternVL3's template needs.")
        return int(token_id)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text, in which control tokens are plain characters."""
        parts = self._tag_pattern.split(text) if self._tag_pattern else [text]
        ids: list[int] = []
        for part in parts:
            tag = self._tags.get(part)
            ids += [tag] if tag is not None else self._plain.encode(part, add_special_tokens=False).ids
        return ids

    def encode(self, pieces: Iterable[Piece], image_token_counts: Iterable[int] = ()) -> list[int]:
        """Return the ids of a rendered conversation. Image slot i becomes `image_token_counts[i]` context tokens.

        Text between two control tokens is encoded as one string, as in the official code.
        """
        counts = iter(image_token_counts)
        ids: list[int] = []
        run = ""
        for piece in pieces:
            if isinstance(piece, str):
                run += piece
                continue
            ids += self.encode_text(run)
            run = ""
            if isinstance(piece, Control):
                ids.append(self.control_id(piece.token))
            else:
                ids += [self.img_id, *[self.context_id] * next(counts), self.img_end_id]
        return ids + self.encode_text(run)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of ids without hidden tokens. Bytes that are not valid UTF-8 become U+FFFD."""
        shown = [token_id for token_id in token_ids if token_id not in self.hidden_ids]
        return str(self.full.decode(shown, skip_special_tokens=False))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be part of a character. An unknown id has no bytes."""
        token = self.full.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(map(_BYTE_OF_CHARACTER.__getitem__, token))
        except KeyError:
            return str(token).encode()
