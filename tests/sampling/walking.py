"""Texts of compiled grammars, with the test tokenizer."""

from __future__ import annotations

import random

from ternvl.params import Grammar
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.sampling.grammar import GrammarCompiler, Matcher, fill_masks
from tests.fakes import tiny_tokenizer


def make_compiler(tokenizer: Tokenizer | None = None, vocab_size: int | None = None) -> GrammarCompiler:
    tokenizer = tokenizer or tiny_tokenizer()
    return GrammarCompiler(
        tokenizer.token_bytes,
        tokenizer.encode_text,
        vocab_size=vocab_size or tokenizer.vocab_size,
        hidden_ids=tokenizer.hidden_ids,
        stop_ids=tokenizer.stop_ids,
    )


def allowed(compiler: GrammarCompiler, matcher: Matcher) -> list[int]:
    mask = fill_masks([matcher], compiler.vocab_size)[0]
    words = [word & 0xFFFFFFFF for word in mask.tolist()]
    return [token_id for token_id in range(compiler.vocab_size) if words[token_id // 32] >> token_id % 32 & 1]


def walk(compiler: GrammarCompiler, grammar: Grammar, rng: random.Random, *, max_tokens: int = 400) -> str | None:
    """A text of tokens chosen at random among those allowed; None if it did not end."""
    matcher, tokenizer, ids = compiler.compile(grammar).matcher(), tiny_tokenizer(), list[int]()
    for _ in range(max_tokens):
        choices = allowed(compiler, matcher)
        ends = [token_id for token_id in choices if token_id in tokenizer.stop_ids]
        if ends and (len(choices) == len(ends) or rng.random() < 0.2):
            break
        assert not set(choices) & (tokenizer.hidden_ids - set(tokenizer.stop_ids))
        ids.append(rng.choice([token_id for token_id in choices if token_id not in ends]))
        if matcher.accept(ids[-1]):
            break
    else:
        return None
    return b"".join(map(tokenizer.token_bytes, ids)).decode()  # strict: never half a character


def accepts(compiler: GrammarCompiler, grammar: Grammar, text: str) -> bool:
    """Whether a grammar allows exactly this text. A mask now and then, as the engine computes them, renews the fuel."""
    matcher = compiler.compile(grammar).matcher().state
    ids = tiny_tokenizer().encode_text(text)
    for start in range(0, len(ids), 500):
        matcher.compute_bitmask()
        if not matcher.consume_tokens(ids[start : start + 500]):
            return False
    return bool(matcher.is_accepting())
