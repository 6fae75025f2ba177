"""Log probabilities of generated tokens in OpenAI's form: the token's text, its bytes and the value."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ternvl.prompt.tokenizer import Tokenizer
from ternvl.types import TokenLogprobs

_MIN_LOGPROB = -9999.0
"""The value for a probability of zero, as in OpenAI's API, because JSON has no infinity."""


def entry(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
    """Return one element of `logprobs.content` of Chat Completions."""
    top = [_shown(tokenizer, other_id, logprob) for other_id, logprob in logprobs.top]
    return {**_shown(tokenizer, token_id, logprobs.logprob), "top_logprobs": top}


def _shown(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    text = data.decode("utf-8", errors="replace")
    return {"token": text, "logprob": max(logprob, _MIN_LOGPROB), "bytes": list(data)}


def legacy(tokenizer: Tokenizer, listed: Sequence[tuple[int, TokenLogprobs]], offset: int) -> dict[str, list[Any]]:
    """Return the `logprobs` of the completions endpoint. `offset` is the number of characters before these tokens.

    Each element of `top_logprobs` also has the drawn token, if it is none of the most likely ones.
    """
    entries = [entry(tokenizer, *item) for item in listed]
    tokens = [item["token"] for item in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [item["logprob"] for item in entries],
        "top_logprobs": [
            {item["token"]: item["logprob"]} | {top["token"]: top["logprob"] for top in item["top_logprobs"]}
            for item in entries
        ],
        "text_offset": list(accumulate(map(len, tokens), initial=offset))[:-1],
    }
