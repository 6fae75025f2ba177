"""Log probabilities of drawn tokens as OpenAI shows them: text, value and the token's own bytes."""

from __future__ import annotations

from typing import Any

from ternvl.prompt.tokenizer import Tokenizer
from ternvl.types import TokenLogprobs

_MIN_LOGPROB = -9999.0
"""Stands for a probability of zero, as in OpenAI's API: JSON has no infinity."""


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE (GPT-2's encoder.py) writes for each byte, to that byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The bytes a token stands for; a character of the text may need several tokens' bytes."""
    token = tokenizer.full.id_to_token(token_id) or ""
    if any(char not in _BYTES for char in token):
        return token.encode("utf-8")
    return bytes(_BYTES[char] for char in token)


def entry(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
    """One element of `logprobs.content`."""
    top = [_shown(tokenizer, other_id, logprob) for other_id, logprob in logprobs.top]
    return {**_shown(tokenizer, token_id, logprobs.logprob), "top_logprobs": top}


def _shown(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = token_bytes(tokenizer, token_id)
    return {
        "token": data.decode("utf-8", errors="replace"),
        "logprob": max(logprob, _MIN_LOGPROB),
        "bytes": list(data),
    }
