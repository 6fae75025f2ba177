"""Constrained decoding over llguidance: which tokens an answer may go on with.

A grammar speaks of bytes, and llguidance knows the bytes of every token, so the answer has the asked-for form however
the model cuts it into tokens. Control tokens have no bytes: no grammar reaches them, and only the end of the answer is
allowed among them, exactly where the grammar may end.

Shapes: R rows, V vocabulary, W = ceil(V / 32) words of a bitmask.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from copy import copy
from weakref import WeakValueDictionary

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.sampling.sources import parts, source

_MAX_CACHED = 64
_LIMITS = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)
_NOTHING = "there is nothing that it allows"
_UNSUPPORTED = re.compile(r"Unimplemented keys: \[(.*)\]")


class GrammarError(RuntimeError):
    """Rows whose grammars cannot say how to go on: a limit was reached, or nothing at all is allowed."""

    def __init__(self, rows: list[int], reason: str) -> None:
        super().__init__(f"The answer was given up, because its grammar cannot be followed: {reason}.")
        self.rows = rows


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher, compiler: GrammarCompiler, *, ignore_eos: bool = False) -> None:
        """With `ignore_eos` the answer may end only where the grammar allows nothing else."""
        self.state = matcher
        self._banned, self._no_ends = compiler.banned, compiler.no_ends
        self._ignore_eos = ignore_eos

    def accept(self, token_id: int) -> bool:
        """Take a drawn token; whether the answer is whole and can have no more."""
        return self.state.consume_token(token_id) and self.state.is_stopped() and self.state.is_accepting()

    def forced(self) -> list[int]:
        """Tokens that follow because the grammar allows no other text, in the tokenizer's usual cut."""
        return [] if self.state.is_stopped() else list(self.state.deep_copy().compute_ff_tokens())

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """How many leading tokens of some the grammar allows."""
        return int(self.state.deep_copy().validate_tokens(list(token_ids)))

    def fork(self) -> Matcher:
        """One that goes on from here by itself."""
        forked = copy(self)
        forked.state = self.state.deep_copy()
        return forked

    def trim(self, bits: Tensor) -> str:
        """Takes from a fresh mask [W] what no grammar may allow; the reason if that leaves nothing."""
        if self.state.is_error():
            return _reason(self.state)
        bits &= self._banned
        going_on = bits & self._no_ends
        if not bool(going_on.any()):
            return "" if self.state.is_accepting() else _NOTHING
        if self._ignore_eos:
            bits.copy_(going_on)
        return ""


class CompiledGrammar:
    """A grammar that is ready to be followed by any number of answers."""

    def __init__(self, matcher: LLMatcher, compiler: GrammarCompiler) -> None:
        self._matcher, self._compiler = matcher, compiler

    def matcher(self, *, ignore_eos: bool = False) -> Matcher:
        """For an answer at its beginning."""
        return Matcher(self._matcher.deep_copy(), self._compiler, ignore_eos=ignore_eos)


class GrammarCompiler:
    """Compiles grammars for one vocabulary, each once: the last of them, and those in use, are kept. Thread-safe."""

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        *,
        vocab_size: int,
        hidden_ids: Collection[int],
        stop_ids: Sequence[int],
    ) -> None:
        """`token_bytes` gives what a token adds to the answer, `encode` the usual tokens of a text. `hidden_ids` are
        control tokens, `stop_ids` those that end an answer."""
        self._token_bytes, self._encode = token_bytes, encode
        self.vocab_size = vocab_size
        self.stop_ids = tuple(stop_ids)
        self._hidden_ids = frozenset(token_id for token_id in hidden_ids if token_id < vocab_size)
        self.banned = torch.full((num_words(vocab_size),), -1, dtype=torch.int32)
        """[W], with a zero for each control token that does not end an answer, so a mask is ANDed with it."""
        self.no_ends = self.banned.clone()
        """[W], with a zero for each token that ends an answer."""
        for token_id in self._hidden_ids - set(stop_ids):
            clear(self.banned, token_id)
        for token_id in stop_ids:
            clear(self.no_ends, token_id)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._recent: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._alive: WeakValueDictionary[Grammar, CompiledGrammar] = WeakValueDictionary()

    def prepare(self) -> LLTokenizer:
        """Reads the vocabulary, the first time: a second or two for a large one."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    TokenizerWrapper(self._vocabulary()),
                    n_vocab=self.vocab_size,
                    eos_token=list(self.stop_ids),
                )
            return self._tokenizer

    def _vocabulary(self) -> _Vocabulary:
        return _Vocabulary(
            self._token_bytes,
            self._encode,
            vocab_size=self.vocab_size,
            hidden_ids=self._hidden_ids,
            eos_id=self.stop_ids[0],
        )

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """May take a second. Raises RequestError, which names the field and the rule, for a grammar that is not
        served: broken, too large, with parts that are not supported, or one that nothing fulfils."""
        with self._lock:
            known = self._alive.get(grammar)
            if known is not None:
                self._keep(grammar, known)
                return known
        compiled = CompiledGrammar(self._compile(grammar), self)
        with self._lock:
            self._keep(grammar, compiled)
        return compiled

    def _keep(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        self._alive[grammar] = self._recent[grammar] = compiled
        self._recent.move_to_end(grammar)
        if len(self._recent) > _MAX_CACHED:
            self._recent.popitem(last=False)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        text = source(grammar)
        matcher = LLMatcher(self.prepare(), text, log_level=0, limits=_LIMITS)
        bits = torch.empty(len(self.banned), dtype=torch.int32)
        reason = _reason(matcher)
        if not reason:
            first = Matcher(matcher.deep_copy(), self)
            first.state.unsafe_compute_mask_ptr(bits.data_ptr(), bits.nbytes)
            reason = first.trim(bits)
        if reason:
            for part in parts(grammar):
                self._compile(part)  # raises, naming the part that is to blame
            raise RequestError(
                f"{grammar.param} cannot be served: {reason}.", param=grammar.param, code="unsupported_schema"
            )
        return matcher


class _Vocabulary:
    """A vocabulary as llguidance asks for it. It takes no bytes, so that llguidance gives it text."""

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        *,
        vocab_size: int,
        hidden_ids: Collection[int],
        eos_id: int,
    ) -> None:
        self.eos_token_id = eos_id
        self.bos_token_id = None
        self.tokens = [token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted(hidden_ids)
        self._encode = encode
        self._of_byte = {token: i for i, token in enumerate(self.tokens) if len(token) == 1 and i not in hidden_ids}

    def __call__(self, text: str) -> list[int]:
        data = text.encode()
        ids = self._encode(text)
        if b"".join(self.tokens[token_id] for token_id in ids if token_id < len(self.tokens)) == data:
            return ids
        return [self._of_byte[bytes([byte])] for byte in data]  # the tokenizer would write the text in another form


def fill_masks(matchers: Sequence[Matcher], vocab_size: int) -> Tensor:
    """Bitmasks [R, W] of the tokens that each answer may go on with. Raises GrammarError.

    Python's lock is not held meanwhile. One takes about a tenth of a millisecond, so threads would not pay.
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
    """Words of a bitmask."""
    return -(-vocab_size // 32)


def clear(bits: Tensor, token_id: int) -> None:
    """Takes a token from a bitmask [W], in place."""
    word = 1 << token_id % 32
    bits[token_id // 32] &= ~(word - 2**32 if word >= 2**31 else word)


def _reason(matcher: LLMatcher) -> str:
    """Why a matcher failed, in one line; empty where it did not."""
    if not matcher.is_error():
        return ""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    found = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    if found.startswith("NoExtension"):
        return _NOTHING
    keys = _UNSUPPORTED.fullmatch(found)
    return f"it uses {keys[1]}, which is not supported" if keys else found.rstrip(".")[:300]
