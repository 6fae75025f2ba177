"""Constrained decoding with llguidance: computes which tokens may come next in an answer.

A grammar is defined over bytes, and llguidance knows the bytes of every token, so the answer follows the grammar
however the model cuts it into tokens. Control tokens have no bytes, so no grammar allows them, except for the tokens
that end an answer: these are allowed exactly where the grammar may end.

Shapes: R rows, V vocabulary, W = ceil(V / 32) words of a bitmask.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from copy import copy

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.sampling.sources import parts, source
from ternvl.sampling.trial.compiling import ALLOWS_NOTHING, Vocabulary, matcher_of, reason_of
from ternvl.sampling.trial.trials import GrammarTrials, is_small

_MAX_CACHED = 64
_SEARCH_SECONDS = 2.0
"""Seconds for finding which tool or form of a grammar is the reason that the whole is not served."""

Trial = Callable[[str, str], str]
"""Takes a grammar in llguidance's language and the name of its field, and returns why it cannot be served, or ""."""


class GrammarError(RuntimeError):
    """Rows whose grammars fail: a limit of llguidance was reached, or no token at all is allowed."""

    def __init__(self, rows: list[int], reason: str) -> None:
        super().__init__(f"The answer was stopped, because its grammar cannot be followed any further: {reason}.")
        self.rows = rows


class Matcher:
    """The position of one answer in its grammar."""

    def __init__(self, matcher: LLMatcher, compiler: GrammarCompiler, *, ignore_eos: bool = False) -> None:
        """With `ignore_eos`, the answer may end only where the grammar allows nothing else."""
        self.state = matcher
        self._banned, self._no_ends = compiler.banned, compiler.no_ends
        self._ignore_eos = ignore_eos

    def accept(self, token_id: int) -> bool:
        """Take a drawn token; return whether the answer is complete and cannot be continued."""
        return self.state.consume_token(token_id) and self.state.is_stopped() and self.state.is_accepting()

    def forced(self) -> list[int]:
        """Return the next tokens where the grammar allows only one text, cut as the tokenizer usually cuts it."""
        return [] if self.state.is_stopped() else list(self.state.deep_copy().compute_ff_tokens())

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """Return how many of `token_ids`, counted from the first, the grammar allows in sequence."""
        return int(self.state.deep_copy().validate_tokens(list(token_ids)))

    def fork(self) -> Matcher:
        """Return an independent matcher at the same position."""
        forked = copy(self)
        forked.state = self.state.deep_copy()
        return forked

    def trim(self, bits: Tensor) -> str:
        """Clear the bits of a newly computed mask [W] that no grammar may set, in place.

        Returns the reason if no token is left, else an empty string.
        """
        if self.state.is_error():
            return reason_of(self.state)
        bits &= self._banned
        continuing = bits & self._no_ends
        if not bool(continuing.any()):
            return "" if self.state.is_accepting() else ALLOWS_NOTHING
        if self._ignore_eos:
            bits.copy_(continuing)
        return ""


class CompiledGrammar:
    """A compiled grammar, which any number of answers may use."""

    def __init__(self, matcher: LLMatcher, compiler: GrammarCompiler, unenforced: tuple[str, ...] = ()) -> None:
        self._matcher, self._compiler = matcher, compiler
        self.unenforced = unenforced
        """Paths of the rules that it does not enforce: within the request for tools, else within the schema."""

    def matcher(self, *, ignore_eos: bool = False) -> Matcher:
        """Return a matcher for an answer at its beginning."""
        return Matcher(self._matcher.deep_copy(), self._compiler, ignore_eos=ignore_eos)


class GrammarCompiler:
    """Compiles grammars for one vocabulary and caches the most recent ones. It is thread-safe."""

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        *,
        vocab_size: int,
        hidden_ids: Collection[int],
        stop_ids: Sequence[int],
    ) -> None:
        """`token_bytes` returns a token's bytes, `encode` the tokens of a text; `hidden_ids` are control tokens."""
        self._token_bytes, self._encode = token_bytes, encode
        self.vocab_size = vocab_size
        self.stop_ids = tuple(stop_ids)
        self._hidden_ids = frozenset(token_id for token_id in hidden_ids if token_id < vocab_size)
        self.banned = torch.full((num_words(vocab_size),), -1, dtype=torch.int32)
        """[W] int32 to AND with a mask: a zero bit for each control token that does not end an answer."""
        self.no_ends = self.banned.clone()
        """[W] int32: a zero bit for each token that ends an answer."""
        for token_id in self._hidden_ids - set(stop_ids):
            clear(self.banned, token_id)
        for token_id in stop_ids:
            clear(self.no_ends, token_id)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._recent: OrderedDict[tuple[str, Grammar], CompiledGrammar] = OrderedDict()

    def prepare(self) -> LLTokenizer:
        """Return llguidance's tokenizer. The first call reads the vocabulary, up to two seconds for a large one."""
        with self._lock:
            if self._tokenizer is None:
                vocabulary = Vocabulary(
                    self._tokens(), self._encode, hidden_ids=self._hidden_ids, eos_id=self.stop_ids[0]
                )
                self._tokenizer = vocabulary.tokenizer(self.stop_ids)
            return self._tokenizer

    def trials(self) -> GrammarTrials:
        """Return worker processes that try grammars for this vocabulary; none is started yet."""
        return GrammarTrials(self._tokens, hidden_ids=sorted(self._hidden_ids), stop_ids=self.stop_ids)

    def _tokens(self) -> list[bytes]:
        return [self._token_bytes(token_id) for token_id in range(self.vocab_size)]

    def is_quick(self, grammar: Grammar, *, salt: str = "") -> bool:
        """Return whether `compile` is quick in any case, without a trial."""
        with self._lock:
            return (salt, grammar) in self._recent or is_small(grammar)

    def compile(self, grammar: Grammar, *, salt: str = "", trial: Trial | None = None) -> CompiledGrammar:
        """Compile a grammar, which may take a second, or return it from the cache, if it was compiled for this `salt`.

        With a `trial`, one that is not small is tried first. Raises RequestError, which names the field and the rule,
        if the grammar is invalid, too large, uses features that are not supported, or allows no text; and the errors
        of the trial.
        """
        with self._lock:
            cached = self._recent.get((salt, grammar))
            if cached is not None:
                self._recent.move_to_end((salt, grammar))
                return cached
        compiled = self._compile(grammar, trial)
        with self._lock:
            self._recent[salt, grammar] = compiled
            self._recent.move_to_end((salt, grammar))
            if len(self._recent) > _MAX_CACHED:
                self._recent.popitem(last=False)
        return compiled

    def _compile(self, grammar: Grammar, trial: Trial | None) -> CompiledGrammar:
        written = source(grammar)
        reason = trial(written.text, grammar.param) if trial is not None and not is_small(grammar) else ""
        if not reason:
            matcher = matcher_of(self.prepare(), written.text)
            reason = reason_of(matcher) or self._first_reason(matcher)
        if reason:
            self._compile_parts(grammar, trial)
            raise RequestError(
                f"{grammar.param} cannot be served: {reason}.", param=grammar.param, code="unsupported_schema"
            )
        return CompiledGrammar(matcher, self, written.unenforced)

    def _first_reason(self, matcher: LLMatcher) -> str:
        """Return why an answer cannot begin, or an empty string."""
        bits = torch.empty(len(self.banned), dtype=torch.int32)
        first = Matcher(matcher.deep_copy(), self)
        first.state.unsafe_compute_mask_ptr(bits.data_ptr(), bits.nbytes)
        return first.trim(bits)

    def _compile_parts(self, grammar: Grammar, trial: Trial | None) -> None:
        """Raise an error that names the part of a grammar that is the cause, if one is and is found in time."""
        end = time.monotonic() + _SEARCH_SECONDS
        for part in parts(grammar):
            if time.monotonic() < end:
                self._compile(part, trial)


def fill_masks(matchers: Sequence[Matcher], vocab_size: int) -> Tensor:
    """Return bitmasks [R, W] int32 of the tokens that may come next in each answer. Raises GrammarError.

    A mask takes about 0.1 ms and is computed without Python's global lock; threads would not make this faster.
    """
    masks = torch.empty(len(matchers), num_words(vocab_size), dtype=torch.int32)
    reasons: dict[int, str] = {}
    for row, matcher in enumerate(matchers):
        matcher.state.unsafe_compute_mask_ptr(masks[row].data_ptr(), masks[row].nbytes)
        reasons[row] = matcher.trim(masks[row])
    failed = [row for row, reason in reasons.items() if reason]
    if failed:
        raise GrammarError(failed, reasons[failed[0]])
    return masks


def num_words(vocab_size: int) -> int:
    """Return the number of 32-bit words of a bitmask."""
    return -(-vocab_size // 32)


def clear(bits: Tensor, token_id: int) -> None:
    """Clear the bit of a token in a bitmask [W], in place."""
    word = 1 << token_id % 32
    bits[token_id // 32] &= ~(word - 2**32 if word >= 2**31 else word)
