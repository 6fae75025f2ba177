"""Log probabilities in the forms of OpenAI's two endpoints, and those of prompts in vLLM's form."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable
from typing import Any

from ternvl.prompt.tokenizer import Tokenizer
from ternvl.types import Prompt, PromptLogprobs, TokenLogprobs

_MIN_LOGPROB = -9999.0
"""The value for a probability of zero, as in OpenAI's API, because JSON has no infinity."""


def entry(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
    """Return one element of `logprobs.content` of Chat Completions: a token's text, its bytes and the value."""
    top = [_shown(tokenizer, other_id, logprob) for other_id, logprob in logprobs.top]
    return {**_shown(tokenizer, token_id, logprobs.logprob), "top_logprobs": top}


def _shown(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    text = data.decode("utf-8", errors="replace")
    return {"token": text, "logprob": max(logprob, _MIN_LOGPROB), "bytes": list(data)}


def of_prompt(tokenizer: Tokenizer, prompt: Prompt, values: PromptLogprobs, num_top: int) -> list[Any]:
    """Return `prompt_logprobs` as vLLM has it: for each token null, or an object by token id.

    An object has the prompt's own token first, then the `num_top` likeliest ones.
    """

    def shown(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        text = tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")
        return {"logprob": max(logprob, _MIN_LOGPROB), "rank": rank, "decoded_token": text}

    return [
        value
        and {str(token_id): shown(token_id, value.logprob, value.rank)}
        | {str(each): shown(each, logprob, rank) for rank, (each, logprob) in enumerate(value.top[:num_top], start=1)}
        for token_id, value in zip(prompt.token_ids, values, strict=True)
    ]


class TokenLister:
    """Writes the `logprobs` of the completions endpoint for one text, as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, num_top: int, hidden_ids: Collection[int], offset: int) -> None:
        """`num_top` likeliest tokens are listed. Tokens of `hidden_ids` have no text. The text begins at `offset`."""
        self._tokenizer, self._num_top, self._hidden_ids = tokenizer, num_top, hidden_ids
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = offset

    def write(self, tokens: Iterable[tuple[int, TokenLogprobs | None]]) -> dict[str, list[Any]]:
        """Return the lists for the next tokens. A token that has no log probability has null.

        An element of `top_logprobs` always has the token itself, too.
        """
        listed: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, value in tokens:
            data = self._tokenizer.token_bytes(token_id)
            name = _name(data)
            listed["tokens"].append(name)
            listed["token_logprobs"].append(value and max(value.logprob, _MIN_LOGPROB))
            listed["top_logprobs"].append(value and self._top(name, value))
            listed["text_offset"].append(self._place(b"" if token_id in self._hidden_ids else data))
        return listed

    def _place(self, data: bytes) -> int:
        """Return where the text of the next token begins: where the character begins that it continues, if it does."""
        start, is_within = self._offset, bool(self._characters.getstate()[0])
        text = self._characters.decode(data)
        self._offset += len(text)
        return start + (is_within and text.startswith("\N{REPLACEMENT CHARACTER}"))

    def _top(self, name: str, value: TokenLogprobs) -> dict[str, float]:
        top = {_name(self._tokenizer.token_bytes(each)): logprob for each, logprob in value.top[: self._num_top]}
        own = {name: max(value.logprob, _MIN_LOGPROB)}
        return own | top | own  # first in order and never replaced, if tokens without bytes share a name


def _name(data: bytes) -> str:
    """Return the text of a token; OpenAI's form for a part of a character, so that no two tokens look alike."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
