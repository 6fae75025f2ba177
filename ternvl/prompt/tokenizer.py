"""Converts text to token ids and back with the `tokenizers` library.

Only the template's own pieces become control tokens. In user text, no added tokens are recognised except those that
have a meaning in a question or an answer (grounding and tool-call tags), as in the official tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from ternvl.errors import CheckpointError
from ternvl.prompt import gguf_tokenizer, slow_tokenizer
from ternvl.prompt.template import IM_END, Control, ImageSlot, Piece
from ternvl.workers.trim import trim

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


class TextTooLongError(Exception):
    """A text with more tokens than were allowed. `num_tokens` is how many it has at least."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"the text has at least {num_tokens} tokens")
        self.num_tokens = num_tokens


_PIECE, _LONGEST_PIECE = 32_768, 262_144
"""Characters after which a long text is cut, and after which it is cut at any place."""
_MAX_COMPOSED = 4
"""The most characters that Unicode's composition makes one of."""
_WORD_END = re.compile(r"[A-Za-z0-9](?= [A-Za-z])")


def _cut(text: str, *, always: bool) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a text, and for each whether the cut behind it changes no token, being between two words.

    A text without such a place for _LONGEST_PIECE characters is cut anywhere if `always`, otherwise not at all.
    """
    start = 0
    while len(text) - start > _PIECE:
        end, is_safe = _next_cut(text, start)
        if not is_safe and not always:
            break
        yield text[start:end], is_safe
        start = end
    yield text[start:], True


def _next_cut(text: str, start: int) -> tuple[int, bool]:
    found = _WORD_END.search(text, start + _PIECE, start + _LONGEST_PIECE)
    if found:
        return found.end(), True
    end = start + _LONGEST_PIECE
    return (end, False) if end < len(text) else (len(text), True)


def _spec(folder: Path) -> tuple[str, str]:
    """Return the text of a folder's tokenizer in the form of `tokenizer.json`, and what errors call it."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return slow_tokenizer.read_text(path), str(path)
    if slow_tokenizer.is_there(folder):
        return slow_tokenizer.to_spec(folder), f"the tokenizer in {folder}"
    if any(folder.glob("*.gguf")):
        spec, path = gguf_tokenizer.to_spec(folder)
        return spec, f"the tokenizer in {path}"
    raise CheckpointError(f"{folder} has no tokenizer.json, so text cannot be encoded or decoded.")


class Tokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(self, spec: str, name: str = "tokenizer.json") -> None:
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
        """Read `tokenizer.json`, the files of a slow tokenizer or the metadata of a GGUF file.

        Raises CheckpointError if there is none of them.
        """
        tokenizer = cls(*_spec(folder))
        trim()  # reading a large vocabulary leaves 100 MB of freed pieces
        return tokenizer

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

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.full.get_vocab()))

    def encode_text(self, text: str, *, limit: int | None = None) -> list[int]:
        """Return the ids of a text, in which control tokens are plain characters.

        Raises TextTooLongError as soon as the text is known to have more than `limit` tokens. Python's lock is not held
        while the library works.
        """
        if limit is not None and len(text) > _MAX_COMPOSED * limit * self.longest_token:
            raise TextTooLongError(limit + 1)
        ids: list[int] = []
        start = 0
        for tag in self._tag_pattern.finditer(text) if self._tag_pattern else ():
            self._extend(ids, text[start : tag.start()], limit)
            ids.append(self._tags[tag[0]])
            start = tag.end()
        self._extend(ids, text[start:] if start else text, limit)
        return ids

    def _extend(self, ids: list[int], text: str, limit: int | None) -> None:
        """Append the ids of a text without tags, piece by piece."""
        before, is_exact = len(ids), True
        for piece, is_safe in _cut(text, always=limit is not None) if self._is_cuttable else [(text, True)]:
            ids += self._ids(piece)
            is_exact &= is_safe
            if limit is not None and len(ids) > limit:
                raise TextTooLongError(len(ids))
        if not is_exact:  # rare: few tokens for so long a text without a place to cut it
            ids[before:] = self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids) if text else []

    @cached_property
    def _is_cuttable(self) -> bool:
        """Whether a word after a space is always a piece of its own, as byte-level tokenizers have it."""
        splitter = self._plain.pre_tokenizer
        return splitter is not None and [at for _, at in splitter.pre_tokenize_str("ab cd")] == [(0, 2), (2, 5)]

    def encode_pieces(self, pieces: Iterable[Piece], *, limit: int | None = None) -> list[list[int] | ImageSlot]:
        """Return the ids of a rendered conversation, with its image slots where they stand.

        Text between two control tokens is encoded as one string, as in the official code. Raises TextTooLongError as
        soon as the ids are known to be more than `limit`.
        """
        encoded: list[list[int] | ImageSlot] = [[]]
        run: list[str] = []
        num_tokens = 0
        for piece in [*pieces, None]:
            if isinstance(piece, str):
                run.append(piece)
                continue
            try:
                ids = self.encode_text("".join(run), limit=None if limit is None else limit - num_tokens)
            except TextTooLongError as error:
                raise TextTooLongError(num_tokens + error.num_tokens) from None
            run = []
            if isinstance(piece, Control):
                ids.append(self.control_id(piece.token))
            num_tokens += len(ids)
            encoded[-1] += ids  # type: ignore[operator]
            if isinstance(piece, ImageSlot):
                encoded += [piece, []]
        return encoded

    def place_images(self, encoded: Iterable[list[int] | ImageSlot], image_token_counts: Iterable[int]) -> list[int]:
        """Return what `encode_pieces` gave with image slot i as `image_token_counts[i]` context tokens."""
        counts = iter(image_token_counts)
        ids: list[int] = []
        for part in encoded:
            if isinstance(part, ImageSlot):
                ids += [self.img_id, *[self.context_id] * next(counts), self.img_end_id]
            else:
                ids += part
        return ids

    def encode(self, pieces: Iterable[Piece], image_token_counts: Iterable[int] = ()) -> list[int]:
        """Return the ids of a rendered conversation. Image slot i becomes `image_token_counts[i]` context tokens."""
        return self.place_images(self.encode_pieces(pieces), image_token_counts)

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
