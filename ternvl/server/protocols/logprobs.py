"""Log probabilities of drawn tokens as OpenAI shows them: text, value and the token's own bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ternvl.prompt.tokenizer import Tokenizer
from ternvl.types import TokenLogprobs

_MIN_LOGPROB = -9999.0
"""Stands for a probability of zero, as in OpenAI's API: JSON has no infinity."""


def entry(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
    """One element of `logprobs.content`."""
    top = [_shown(tokenizer, other_id, logprob) for other_id, logprob in logprobs.top]
    return {**_shown(tokenizer, token_id, logprobs.logprob), "top_logprobs": top}


def _shown(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    text = data.decode("utf-8", errors="replace")
    return {"token": text, "logprob": max(logprob, _MIN_LOGPROB), "bytes": list(data)}


def legacy(tokenizer: Tokenizer, listed: Sequence[tuple[int, TokenLogprobs]], offset: int) -> dict[str, list[Any]]:
    """`logprobs` of the completions endpoint; `offset` is how many characters the tokens before these have."""
    entries = [entry(tokenizer, *item) for item in listed]
    tokens = [item["token"] for item in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [item["logprob"] for item in entries],
        "top_logprobs": [{top["token"]: top["logprob"] for top in item["top_logprobs"]} for item in entries],
        "text_offset": list(accumulate(map(len, tokens), initial=offset))[:-1],
    }
