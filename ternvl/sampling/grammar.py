"""Constrained decoding with llguidance: computes which tokens may come next in an answer.

A grammar is defined over bytes, and llguidance knows the bytes of every token, so the answer follows the grammar
however the model cuts it into tokens. Control tokens have no bytes, so no grammar allows them, except for the tokens
that end an answer: these are allowed exactly where the grammar may end.

Shapes: R rows, V vocabulary, W = ceil(V / 32) words of a bitmask.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from copy import copy

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.sampling.sources import parts, source

_MAX_CACHED = 64
_LIMITS = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)
_ALLOWS_NOTHING = "it allows nothing at all"
_WHERE = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")
_UNSUPPORTED = re.compile(r"Unimplemented keys: \[(.*)\]")


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
            return _reason(self.state)
        bits &= self._banned
        continuing = bits & self._no_ends
        if not bool(continuing.any()):
            return "" if self.state.is_accepting() else _ALLOWS_NOTHING
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

    def compile(self, grammar: Grammar, *, salt: str = "") -> CompiledGrammar:
        """Compile a grammar, which may take a second, or return it from the cache, if it was compiled for this `salt`.

        Raises RequestError, which names the field and the rule, if the grammar is invalid, too large, uses features
        that are not supported, or allows no text.
        """
        with self._lock:
            cached = self._recent.get((salt, grammar))
            if cached is not None:
                self._recent.move_to_end((salt, grammar))
                return cached
        compiled = self._compile(grammar)
        with self._lock:
            self._recent[salt, grammar] = compiled
            self._recent.move_to_end((salt, grammar))
            if len(self._recent) > _MAX_CACHED:
                self._recent.popitem(last=False)
        return compiled

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        written = source(grammar)
        matcher = LLMatcher(self.prepare(), written.text, log_level=0, limits=_LIMITS)
        bits = torch.empty(len(self.banned), dtype=torch.int32)
        reason = _reason(matcher)
        if not reason:
            first = Matcher(matcher.deep_copy(), self)
            first.state.unsafe_compute_mask_ptr(bits.data_ptr(), bits.nbytes)
            reason = first.trim(bits)
        if reason:
            for part in parts(grammar):
                self._compile(part)  # raises an error that names this part, if it is the cause
            raise RequestError(
                f"{grammar.param} cannot be served: {reason}.", param=grammar.param, code="unsupported_schema"
            )
        return CompiledGrammar(matcher, self, written.unenforced)


class _Vocabulary:
    """The vocabulary in the form that llguidance reads. It accepts text only, so that llguidance passes text to it."""

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
        return [self._of_byte[bytes([byte])] for byte in data]  # the tokenizer would normalise the text


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


def _reason(matcher: LLMatcher) -> str:
    """Return in one line why a matcher failed, or an empty string if it did not."""
    if not matcher.is_error():
        return ""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    found = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    found = _WHERE.sub("", found)
    if found.startswith("NoExtension"):
        return _ALLOWS_NOTHING
    if found.startswith("oneOf constraints"):
        return 'it uses "oneOf" with branches that may overlap, which is not supported'
    keys = _UNSUPPORTED.fullmatch(found)
    return f"it uses {keys[1]}, which is not supported" if keys else found.rstrip(".")[:300]
