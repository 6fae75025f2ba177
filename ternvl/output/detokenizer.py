"""Decode token ids to text incrementally, without ever cutting a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ternvl.prompt.tokenizer import Tokenizer


class Detokenizer:
    """Incremental `Tokenizer.decode`: the pieces it returns, joined, equal the text of all ids decoded at once.

    At most three bytes are held back, while they may still become a character, so the work is linear in the answer.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        """Without `skip_special_tokens`, special tokens are shown as text, too."""
        self._tokenizer = tokenizer
        self.hidden_ids = tokenizer.hidden_ids if skip_special_tokens else frozenset[int]()
        """Ids that are left out of the text."""
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the characters that these ids complete. Bytes that are not valid UTF-8 become U+FFFD."""
        shown = (token_id for token_id in token_ids if token_id not in self.hidden_ids)
        data = b"".join(map(self._tokenizer.token_bytes, shown))
        return self._characters.decode(data)

    def flush(self) -> str:
        """Return U+FFFD if the ids ended within a character, else an empty string."""
        return self._characters.decode(b"", final=True)
