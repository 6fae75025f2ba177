"""What the server and its trial workers compile grammars with: limits, a vocabulary, and llguidance's own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

LIMITS = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, step_lexer_fuel=30_000, verbose_errors=False)
"""The fuel of a step bounds a mask of a regular expression to some hundredths of a second. The default, seven times as
much, allows half a second, in which no stream gets a token."""

ALLOWS_NOTHING = "it allows nothing at all"
_WHERE = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")
_UNSUPPORTED = re.compile(r"Unimplemented keys: \[(.*)\]")


class Vocabulary:
    """A vocabulary in the form that llguidance reads. It accepts text only, so that llguidance passes text to it."""

    def __init__(
        self, tokens: Sequence[bytes], encode: Callable[[str], list[int]], *, hidden_ids: Collection[int], eos_id: int
    ) -> None:
        """`tokens[i]` has the bytes of token i; `hidden_ids` are control tokens; `encode` returns a text's tokens."""
        self.eos_token_id = eos_id
        self.bos_token_id = None
        self.tokens = list(tokens)
        self.special_token_ids = sorted(hidden_ids)
        self._encode = encode
        self._of_byte = {token: i for i, token in enumerate(self.tokens) if len(token) == 1 and i not in hidden_ids}

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        data = text.encode()
        ids = self._encode(text)
        if b"".join(self.tokens[token_id] for token_id in ids if token_id < len(self.tokens)) == data:
            return ids
        return [self._of_byte[bytes([byte])] for byte in data]  # the tokenizer would normalise the text

    def tokenizer(self, stop_ids: Sequence[int]) -> LLTokenizer:
        """Return llguidance's tokenizer, which takes up to two seconds to make for a large vocabulary."""
        return LLTokenizer(TokenizerWrapper(self), n_vocab=len(self.tokens), eos_token=list(stop_ids))


def matcher_of(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    """Compile a grammar in llguidance's language. The matcher has an error if it cannot be served."""
    return LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)


def reason_of(matcher: LLMatcher) -> str:
    """Return in one line why a matcher failed, or an empty string if it did not."""
    if not matcher.is_error():
        return ""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    found = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    found = _WHERE.sub("", found)
    if found.startswith("NoExtension"):
        return ALLOWS_NOTHING
    if found.startswith("oneOf constraints"):
        return 'it uses "oneOf" with branches that may overlap, which is not supported'
    keys = _UNSUPPORTED.fullmatch(found)
    return f"it uses {keys[1]}, which is not supported" if keys else found.rstrip(".")[:300]
