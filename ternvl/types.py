"""The value types everyone shares: what a prompt is, what is asked of it, what comes back.

They are frozen, carry no behaviour beyond derived values and the check of their own ranges, and import nothing of the
package but its errors, so every folder can speak them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from json import dumps
from math import inf
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from ternvl.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from ternvl.lora.bank import Adapter

Progress = Callable[[int, int], None]
"""Called with the number of items done and the number of all items."""


class FinishReason(StrEnum):
    """Why a sequence ended. The server turns `STOP` into "tool_calls" where calls were parsed."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where one image stands in a prompt: its run of context tokens and its rows of `Prompt.pixel_values`."""

    start: int
    """Index in `Prompt.token_ids` of the image's first context token."""
    num_tokens: int
    """Context tokens of the image: tiles times tokens a tile."""
    first_tile: int
    """Row of `Prompt.pixel_values` of the image's first tile."""
    num_tiles: int
    digest: bytes
    """SHA-256 over the pixels of the image's tiles: two images share it iff they are the same work."""

    @property
    def stop(self) -> int:
        """Index just past the image's last context token."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A conversation as the model takes it."""

    token_ids: tuple[int, ...]
    images: tuple[ImageSpan, ...] = ()
    pixel_values: Tensor | None = None
    """[N, 3, S, S] float32, normalised; the tiles of all images in order. None without images."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_image_tokens(self) -> int:
        return sum(image.num_tokens for image in self.images)


GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark", "tools"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like. `sampling/grammar.py` compiles it; `Grammar.of` is the easy way to one."""

    kind: GrammarKind
    text: str = ""
    """A JSON Schema, nothing, a regular expression, a JSON array of strings, a Lark grammar, or JSON as
    `sampling/sources.py` reads it."""
    param: str = field(default="grammar", compare=False)
    """The field of the request that it came from, which errors name."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            kinds = ", ".join(get_args(GrammarKind))
            raise RequestError(f"The grammar's kind is {self.kind!r}, but must be one of {kinds}.", param=self.param)
        if not isinstance(self.text, str):
            raise RequestError(f"The grammar's text is {self.text!r}, but must be a string.", param=self.param)

    @classmethod
    def of(cls, kind: GrammarKind, value: Any = "", *, param: str = "grammar") -> Self:
        """`Grammar.of("choice", ["yes", "no"])`, `Grammar.of("json_schema", {...})`, `Grammar.of("regex", "[0-9]+")`:
        what is no string is written as JSON. Raises RequestError where it cannot be."""
        try:
            return cls(kind, value if isinstance(value, str) else dumps(value), param)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"{param} cannot be written as JSON: {error}.", param=param) from error


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. A value out of its range raises RequestError whose `param` is the field's name.

    A temperature of 0 is greedy. `top_k` 0 or -1 keeps all tokens. `logprobs` None returns none, k >= 0 returns
    the drawn token's log probability and the k best. `max_tokens` None runs to the end of the context. `seed` None
    takes one from the engine. `stop` may be one string or a list of them. `stop_token_ids` end an answer as the model's
    own do, also with `ignore_eos`. `grammar` leaves only tokens with which the answer can still become what it asks
    for; where it allows nothing more, the answer ends, whatever `min_tokens` and `ignore_eos` say. `logit_bias`, given
    as a mapping or as pairs, is added to the logits of tokens; `allowed_token_ids`, where there are any, are all that
    may be drawn. Numbers may be numpy's.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    """Whether a stop string that ends an answer is shown as its last characters."""
    skip_special_tokens: bool = True
    """Whether special tokens of the answer are left out of its text."""

    def __post_init__(self) -> None:
        for name in _RANGES:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if not self.repetition_penalty:
            raise RequestError("repetition_penalty is 0, but must be above 0.", param="repetition_penalty")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            message = f"min_tokens is {self.min_tokens}, but max_tokens is {self.max_tokens}: it must not be above it."
            raise RequestError(message, param="min_tokens")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "allowed_token_ids", _token_ids("allowed_token_ids", self.allowed_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r}, but must be True or False.", param=name)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise RequestError(f"grammar is {self.grammar!r}, but must be a Grammar.", param="grammar")
        if self.grammar is not None and self.allowed_token_ids:
            message = "allowed_token_ids is given beside a grammar or tools, which might then allow no token at all."
            raise RequestError(message, param="allowed_token_ids")


MAX_STOP_STRINGS = 16
MAX_BIAS = 100
MAX_TOKEN_LIST = 1024
"""Entries that `logit_bias` and `allowed_token_ids` may have: each costs time at every token."""

_NUMBER: Any = Real
_INTEGER: Any = Integral
_OPTIONAL = frozenset({"seed", "max_tokens", "logprobs"})
_RANGES: dict[str, tuple[Any, float, float]] = {
    "temperature": (_NUMBER, 0, 2),
    "top_p": (_NUMBER, 0, 1),
    "top_k": (_INTEGER, -1, inf),
    "min_p": (_NUMBER, 0, 1),
    "presence_penalty": (_NUMBER, -2, 2),
    "frequency_penalty": (_NUMBER, -2, 2),
    "repetition_penalty": (_NUMBER, 0, 2),
    "seed": (_INTEGER, -inf, inf),
    "n": (_INTEGER, 1, inf),
    "max_tokens": (_INTEGER, 1, inf),
    "min_tokens": (_INTEGER, 0, inf),
    "logprobs": (_INTEGER, 0, 20),
}


def _number(name: str, value: Any) -> int | float | None:
    """A value of a field of `_RANGES` as Python's own number."""
    kind, low, high = _RANGES[name]
    if value is None and name in _OPTIONAL:
        return None
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        raise RequestError(f"{name} is {value!r}, but must be {_rule(kind, low, high)}.", param=name)
    return int(value) if isinstance(value, _INTEGER) else float(value)


def _rule(kind: Any, low: float, high: float) -> str:
    words = "an integer" if kind is _INTEGER else "a number"
    if (low, high) == (-inf, inf):
        return words
    return f"{words} of at least {low}" if high == inf else f"{words} from {low} to {high}"


def _stop_strings(stop: Any) -> tuple[str, ...]:
    given = () if stop is None else (stop,) if isinstance(stop, str) else stop
    is_list = isinstance(given, list | tuple)
    if not is_list or len(given) > MAX_STOP_STRINGS or not all(isinstance(text, str) and text for text in given):
        message = f"stop is {stop!r}, but must be at most {MAX_STOP_STRINGS} strings, none of them empty."
        raise RequestError(message, param="stop")
    return tuple(given)


def _token_ids(name: str, ids: Any) -> tuple[int, ...]:
    given = () if ids is None else ids
    is_list = isinstance(given, list | tuple | set | frozenset)
    if not is_list or not all(_is_token_id(token_id) for token_id in given):
        raise RequestError(f"{name} is {ids!r}, but must be integers of at least 0.", param=name)
    _check_size(name, len(given))
    return tuple(map(int, given))


def _is_token_id(value: Any) -> bool:
    return isinstance(value, _INTEGER) and not isinstance(value, bool) and int(value) >= 0


def _biases(biases: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and bias, by ascending id."""
    given = dict(biases or ())
    for token_id, bias in given.items():
        is_number = isinstance(bias, _NUMBER) and not isinstance(bias, bool)
        if not _is_token_id(token_id) or not is_number or not -MAX_BIAS <= bias <= MAX_BIAS:
            rule = f"token ids must be integers of at least 0 and biases numbers from -{MAX_BIAS} to {MAX_BIAS}"
            raise RequestError(f"logit_bias has {token_id!r}: {bias!r}, but {rule}.", param="logit_bias")
    _check_size("logit_bias", len(given))
    return tuple(sorted((int(token_id), float(bias)) for token_id, bias in given.items()))


def _check_size(name: str, size: int) -> None:
    if size > MAX_TOKEN_LIST:
        raise RequestError(f"{name} has {size} entries; it may have {MAX_TOKEN_LIST}.", param=name)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered once; `n` answers are `n` requests with seeds of their own."""

    id: str
    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    """Requests share cached work only with those of the same salt."""
    sibling_of: str | None = None
    """Id of an earlier request with the very same prompt, whose keys and values this one goes on from."""
    adapter: Adapter | None = None
    """LoRA adapter that it is answered with; None for the model alone."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log probabilities after penalties and before truncation, at one position."""

    logprob: float
    """Of the token that was drawn."""
    top: tuple[tuple[int, float], ...] = ()
    """The k likeliest (token id, log probability), best first."""


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one engine step says of one request: new tokens, and the end if it came."""

    request_id: str
    token_ids: tuple[int, ...]
    """New tokens of the answer, `logprobs` beside them. A token that stops the answer is no part of it."""
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = field(default=())
    num_cached_tokens: int = 0
    """Tokens of the prompt that were in the KV cache when the request first ran."""
