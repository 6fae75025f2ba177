"""Token ids to text as they come, never cutting a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ternvl.prompt.tokenizer import Tokenizer


class Detokenizer:
    """Incremental `Tokenizer.decode`: what it yields, put together, is the decoded whole.

    Bytes are held back while they may still become a character (three at most), so the work is linear in the answer.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        """Without `skip_special_tokens` all tokens show."""
        self._tokenizer = tokenizer
        self.hidden_ids = tokenizer.hidden_ids if skip_special_tokens else frozenset[int]()
        """Ids that never show."""
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, token_ids: Sequence[int]) -> str:
        """The whole characters that these ids complete. Bytes that are no UTF-8 become U+FFFD."""
        shown = (token_id for token_id in token_ids if token_id not in self.hidden_ids)
        data = b"".join(map(self._tokenizer.token_bytes, shown))
        return self._characters.decode(data)

    def flush(self) -> str:
        """U+FFFD where the ids ended within a character, else nothing."""
        return self._characters.decode(b"", final=True)
