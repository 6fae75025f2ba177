"""How tokens are drawn: `SamplingParams` and the one table of its parameters.

A parameter is one field of `SamplingParams`, declared by `_parameter(...)` with its kind, its range and one sentence
about it. Validation here, the fields of the HTTP requests (`server/schema/sampling.py`) and the table in
`docs/server.md` follow from that row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, Self, get_args

from ternvl.errors import RequestError
from ternvl.exact_json import dumps

MAX_STOP_STRINGS, MAX_STOP_LENGTH, MAX_BIAS = 16, 1_000, 100
MAX_TOKEN_LIST = 1024  # entries of `logit_bias` and `allowed_token_ids`, each of which costs time at every token
GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark", "tools"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like. `sampling/grammar.py` compiles it; `Grammar.of` is the easy way to make one."""

    kind: GrammarKind
    text: str = ""
    """A JSON Schema, nothing, a regular expression, a JSON array of strings, a Lark grammar, or JSON of `Tools`."""
    param: str = field(default="grammar", compare=False)
    """The field of the request that the grammar came from. Errors name it."""
    closed: bool = True
    """Whether objects have only the properties that their schema lists, unless it says what others may be."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            kinds = ", ".join(get_args(GrammarKind))
            raise RequestError(f"The grammar's kind is {self.kind!r}, but must be one of {kinds}.", param=self.param)
        if not isinstance(self.text, str):
            raise RequestError(f"The grammar's text is {self.text!r}, but must be a string.", param=self.param)

    @classmethod
    def of(cls, kind: GrammarKind, value: Any = "", *, param: str = "grammar", closed: bool = True) -> Self:
        """Make a grammar from a Python value, which is written as JSON unless it is a string already.

        `Grammar.of("choice", ["yes", "no"])`, `Grammar.of("json_schema", {...})` and `Grammar.of("regex", "[0-9]+")`
        are examples. Raises RequestError if the value cannot be written as JSON.
        """
        try:
            return cls(kind, value if isinstance(value, str) else dumps(value), param, closed)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"{param} cannot be written as JSON: {error}.", param=param) from error


class Kind(Enum):
    """The type of a parameter's value."""

    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    STRINGS = "strings"
    TOKEN_IDS = "token ids"
    BIASES = "biases"
    """Token ids, each with a number that is added to its logit."""
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of the table of sampling parameters."""

    kind: Kind
    low: float  # of token ids, the fewest that a request may list
    high: float
    is_optional: bool
    """Whether the value may be None."""
    is_shared: bool
    """Whether every endpoint that generates text takes it under its own name."""
    help: str
    """One sentence for the documentation."""


def _parameter(
    default: Any, kind: Kind, help: str, low: float = -inf, high: float = inf, *, is_shared: bool = True
) -> Any:
    row = Parameter(kind, low, high, default is None, is_shared, help)
    return field(default=default, metadata={"parameter": row})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of an answer are drawn. A value outside its range raises RequestError that names the field.

    A `max_tokens` of None runs to the end of the context; a `seed` of None takes one from the engine. `logprobs` None
    returns no log probabilities, k >= 0 returns that of the drawn token and the k highest. `prompt_logprobs` does the
    same for the tokens of the prompt, and only with it may `max_tokens` be 0, which draws no answer. `stop` may be one
    string or a list of strings. `stop_token_ids` end an answer as the model's own stop tokens do, even with
    `ignore_eos`. `logit_bias` may be a mapping or pairs. Numbers may be numpy's.
    """

    temperature: float = _parameter(1.0, Kind.NUMBER, "0 always takes the likeliest token.", 0, 2)
    top_p: float = _parameter(
        1.0, Kind.NUMBER, "Keeps the fewest likeliest tokens whose probabilities add up to at least this.", 0, 1
    )
    top_k: int = _parameter(0, Kind.INTEGER, "Keeps the k likeliest tokens; 0 and -1 keep all.", -1, 2**31 - 1)
    min_p: float = _parameter(
        0.0, Kind.NUMBER, "Keeps tokens with at least this share of the likeliest token's probability.", 0, 1
    )
    presence_penalty: float = _parameter(
        0.0, Kind.NUMBER, "Lowers the logit of every token that the answer already contains.", -2, 2
    )
    frequency_penalty: float = _parameter(
        0.0, Kind.NUMBER, "Lowers a token's logit once for each time that the answer contains it.", -2, 2
    )
    repetition_penalty: float = _parameter(
        1.0, Kind.NUMBER, "Makes tokens of prompt and answer less likely by this factor; 1 is neutral.", 0.01, 2
    )
    seed: int | None = _parameter(
        None, Kind.INTEGER, "Makes the answer repeatable; answer i of `n` uses `seed` + i.", -(2**63), 2**63 - 1
    )
    n: int = _parameter(1, Kind.INTEGER, "The number of answers to the same prompt.", 1, is_shared=False)
    max_tokens: int | None = _parameter(None, Kind.INTEGER, "The most tokens of an answer.", 0, is_shared=False)
    min_tokens: int = _parameter(
        0, Kind.INTEGER, "The number of tokens before the model may stop; at most `max_tokens`.", 0
    )
    stop: tuple[str, ...] = _parameter((), Kind.STRINGS, "The answer ends before the first of these strings.")
    stop_token_ids: tuple[int, ...] = _parameter((), Kind.TOKEN_IDS, "Further token ids that end the answer.", 0)
    ignore_eos: bool = _parameter(False, Kind.BOOLEAN, "Continues past the model's own stop tokens.")
    logprobs: int | None = _parameter(
        None, Kind.INTEGER, "The number of most likely tokens listed beside each token.", 0, 20, is_shared=False
    )
    prompt_logprobs: int | None = _parameter(None, Kind.INTEGER, "`logprobs` of the prompt.", 0, 20, is_shared=False)
    grammar: Grammar | None = _parameter(None, Kind.GRAMMAR, "The form that the answer must have.", is_shared=False)  # noqa: RUF009
    """Only tokens are drawn with which the answer can still take this form; the answer ends where nothing more is
    allowed, whatever `min_tokens` and `ignore_eos` say."""
    logit_bias: tuple[tuple[int, float], ...] = _parameter(
        (), Kind.BIASES, "Added to the logits of these tokens, before penalties.", -MAX_BIAS, MAX_BIAS
    )
    allowed_token_ids: tuple[int, ...] = _parameter(
        (), Kind.TOKEN_IDS, "If given, only these tokens are drawn; not together with tools or another form.", 1
    )
    include_stop_str_in_output: bool = _parameter(
        False, Kind.BOOLEAN, "Keeps the stop string that ended the answer as its last characters."
    )
    skip_special_tokens: bool = _parameter(
        True, Kind.BOOLEAN, "`false` shows the control tokens of the answer in its text."
    )

    def __post_init__(self) -> None:
        for name, row in PARAMETERS.items():
            object.__setattr__(self, name, _CHECKS[row.kind](name, getattr(self, name), row))
        object.__setattr__(self, "top_k", max(self.top_k, 0))
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            message = "max_tokens is 0, but must be at least 1 unless prompt_logprobs is given."
            raise RequestError(message, param="max_tokens")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            message = f"min_tokens is {self.min_tokens}, but max_tokens is {self.max_tokens}: it must not be above it."
            raise RequestError(message, param="min_tokens")
        if self.grammar is not None and self.allowed_token_ids:
            message = "allowed_token_ids is given beside a grammar or tools, which might then allow no token at all."
            raise RequestError(message, param="allowed_token_ids")


PARAMETERS: dict[str, Parameter] = {each.name: each.metadata["parameter"] for each in fields(SamplingParams)}
"""The table: every sampling parameter by its name, in the order of the fields."""


def rule(row: Parameter) -> str:
    """What a number or an integer must be, in words: "a number from 0 to 2"."""
    words = "an integer" if row.kind is Kind.INTEGER else "a number"
    if (row.low, row.high) == (-inf, inf):
        return words
    return f"{words} of at least {row.low}" if row.high == inf else f"{words} from {row.low} to {row.high}"


def _number(name: str, value: Any, row: Parameter) -> int | float | None:
    if value is None and row.is_optional:
        return None
    is_integer = row.kind is Kind.INTEGER
    is_number = isinstance(value, Integral if is_integer else Real) and not isinstance(value, bool)
    if not is_number or not row.low <= value <= row.high:
        raise RequestError(f"{name} is {value!r}, but must be {rule(row)}.", param=name)
    return int(value) if is_integer else float(value)


def _boolean(name: str, value: Any, row: Parameter) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {value!r}, but must be True or False.", param=name)
    return value


def _strings(name: str, value: Any, row: Parameter) -> tuple[str, ...]:
    given = () if value is None else (value,) if isinstance(value, str) else value
    is_list = isinstance(given, list | tuple)
    if not is_list or len(given) > MAX_STOP_STRINGS or not all(isinstance(text, str) and text for text in given):
        message = f"{name} is {value!r:.200}, but must be at most {MAX_STOP_STRINGS} strings, none of them empty."
        raise RequestError(message, param=name)
    if (longest := max(map(len, given), default=0)) > MAX_STOP_LENGTH:
        raise RequestError(f"{name} has a string of {longest} characters; it may have {MAX_STOP_LENGTH}.", param=name)
    return tuple(given)


def _token_ids(name: str, value: Any, row: Parameter) -> tuple[int, ...]:
    given = () if value is None else value
    is_list = isinstance(given, list | tuple | set | frozenset)
    if not is_list or not all(_is_token_id(token_id) for token_id in given):
        raise RequestError(f"{name} is {value!r}, but must be integers of at least 0.", param=name)
    _check_size(name, len(given))
    return tuple(map(int, given))


def _is_token_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _biases(name: str, value: Any, row: Parameter) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and bias, by ascending id."""
    given = dict(value or ())
    for token_id, bias in given.items():
        is_number = isinstance(bias, Real) and not isinstance(bias, bool)
        if not _is_token_id(token_id) or not is_number or not row.low <= bias <= row.high:
            words = f"token ids must be integers of at least 0 and biases numbers from {row.low} to {row.high}"
            raise RequestError(f"{name} has {token_id!r}: {bias!r}, but {words}.", param=name)
    _check_size(name, len(given))
    return tuple(sorted((int(token_id), float(bias)) for token_id, bias in given.items()))


def _check_size(name: str, size: int) -> None:
    if size > MAX_TOKEN_LIST:
        raise RequestError(f"{name} has {size} entries; it may have {MAX_TOKEN_LIST}.", param=name)


def _grammar(name: str, value: Any, row: Parameter) -> Grammar | None:
    if value is not None and not isinstance(value, Grammar):
        raise RequestError(f"{name} is {value!r}, but must be a Grammar.", param=name)
    return value


_CHECKS = {
    Kind.NUMBER: _number,
    Kind.INTEGER: _number,
    Kind.BOOLEAN: _boolean,
    Kind.STRINGS: _strings,
    Kind.TOKEN_IDS: _token_ids,
    Kind.BIASES: _biases,
    Kind.GRAMMAR: _grammar,
}
"""For each kind the function that checks a value and returns it in the type of the field."""
