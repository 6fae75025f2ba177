"""Comparing the answers of a model with those of its lock, token by token and bit by bit."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ternvl.lts.lock import Lock, RecordedAnswer, Transcript


@dataclass(frozen=True, slots=True)
class Comparison:
    """What has become of one transcript."""

    name: str
    num_tokens: int
    """Of the locked answer."""
    num_equal: int
    """The tokens that are equal up to the first that differs."""
    fault: str
    """What differs, beside the log probabilities; empty if nothing does."""
    ulps: int
    """The largest difference of the log probabilities of the equal tokens, in units of the last place of float32."""
    distance: float
    """The largest absolute difference of these log probabilities."""


def instruction_set_to_compare(lock: Lock, own: str) -> str:
    """Return the machine's own instruction set if the lock has it, otherwise the last that the lock has."""
    return own if own in lock.instruction_sets else lock.instruction_sets[-1]


def compare(locked: Sequence[Transcript], found: Sequence[Transcript], isa: str, own: str) -> list[Comparison]:
    """Compare answers of the instruction set `own` with locked ones of `isa`, transcript by transcript."""
    return [_compare(old, new, isa, own) for old, new in zip(locked, found, strict=True)]


def _compare(old: Transcript, new: Transcript, isa: str, own: str) -> Comparison:
    expected, got = old.answers[isa], new.answers[own]
    pairs = zip(expected.token_ids, got.token_ids, strict=False)
    num_equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    logprobs = list(_logprobs(expected, got))[:num_equal]
    return Comparison(
        old.name,
        len(expected.token_ids),
        num_equal,
        _fault(old, new, expected, got, num_equal),
        max((ulps_between(*pair) for pair in logprobs), default=0),
        max((abs(one - other) for one, other in logprobs if one != other), default=0.0),
    )


def _logprobs(expected: RecordedAnswer, got: RecordedAnswer) -> Iterator[tuple[float, float]]:
    pairs = zip(expected.logprobs, got.logprobs, strict=False)
    return ((float.fromhex(one), float.fromhex(other)) for one, other in pairs)


def _fault(old: Transcript, new: Transcript, expected: RecordedAnswer, got: RecordedAnswer, num_equal: int) -> str:
    if old.prompt_token_ids != new.prompt_token_ids:
        return "the prompt's tokens differ"
    if old.images != new.images:
        return "the pixels of an image differ"
    if expected.token_ids != got.token_ids:
        wanted, drawn = (_token(answer, num_equal) for answer in (expected, got))
        return f"token {num_equal + 1} is {drawn}, expected {wanted}"
    for name in ("finish_reason", "text", "tool_calls"):
        one, other = getattr(expected, name), getattr(got, name)
        if one != other:
            return f"{name.replace('_', ' ')} is {other!r}, expected {one!r}"
    return ""


def _token(answer: RecordedAnswer, index: int) -> str:
    return str(answer.token_ids[index]) if index < len(answer.token_ids) else "the end"


def ulps_between(one: float, other: float) -> int:
    """Return how many float32 values lie from one float32 value to another."""
    return abs(_position(one) - _position(other))


def _position(value: float) -> int:
    """The number of a float32 value among all of them, in order, from 0 for zero."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return int(bits) if bits >= 0 else -(bits & 0x7FFFFFFF)
