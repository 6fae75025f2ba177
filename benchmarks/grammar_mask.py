"""Measure the time of a grammar's mask.

    python benchmarks/grammar_mask.py                                         # the embedded model's 2,048 tokens
    python benchmarks/grammar_mask.py ../shared/data/internvl3-tokenizer      # InternVL3's 151,674

Each grammar is followed along a text that fulfils it, as an answer would be, and the mask of each step is timed, for
one answer and for eight at once as in the engine. `apply` is the time to apply the masks to eight rows of logits.
`first_max` is the longest time in the first pass, in which llguidance builds the states of its lexer. Times are in
milliseconds: medians and 99th percentiles over all steps. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ternvl
from ternvl.params import Grammar
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.sampling.grammar import GrammarCompiler, fill_masks
from ternvl.sampling.processors import apply_bitmask
from ternvl.sampling.tools import Tools

_EMBEDDED = Path(ternvl.__file__).parent / "embedded" / "ternvl-nano"
_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "days"],
}
_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ljubljana", "days": 3, "unit": "C"}}\n</tool_call>'
_TEXT = "The capital of Slovenia is Ljubljana, and its weather is what I shall look up for you now.\n"
_CASES: dict[str, tuple[Grammar, str]] = {
    "json_object": (
        Grammar("json_object"),
        '{"city": "Ljubljana", "sizes": [1, 2.5, null], "in": {"land": "Slovenia"}}',
    ),
    "json_schema": (Grammar.of("json_schema", _PARAMETERS), '{"city": "Ljubljana, Slovenia", "days": 3, "unit": "C"}'),
    "regex": (Grammar.of("regex", r"[a-z0-9._]{1,20}@[a-z0-9.]{1,20}\.(com|org)"), "somebody.else@example.org"),
    "tools": (
        Tools([{"type": "function", "function": {"name": "weather", "parameters": _PARAMETERS}}]).grammar(),
        _TEXT + _CALL,
    ),
}


def measure(
    compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, text: str, repeats: int
) -> dict[str, Any]:
    """Return the times of one grammar's masks, in milliseconds."""
    begin = time.perf_counter()
    compiled = compiler.compile(grammar)
    compile_ms = (time.perf_counter() - begin) * 1e3
    size, ids = compiler.vocab_size, tokenizer.encode_text(text)
    first = _walk(size, [compiled.matcher()], ids)
    alone = [value for _ in range(repeats) for value in _walk(size, [compiled.matcher()], ids)]
    eight = [value for _ in range(repeats) for value in _walk(size, [compiled.matcher() for _ in range(8)], ids)]
    return {
        "compile": compile_ms,
        "first_max": max(first),
        "alone": statistics.median(alone),
        "alone_p99": statistics.quantiles(alone, n=100)[98],
        "eight": statistics.median(eight),
        "eight_p99": statistics.quantiles(eight, n=100)[98],
    }


def _walk(vocab_size: int, matchers: Sequence[Any], ids: Sequence[int]) -> list[float]:
    """Return the milliseconds that the masks of each step take."""
    times = []
    for token_id in ids:
        begin = time.perf_counter()
        fill_masks(matchers, vocab_size)
        times.append((time.perf_counter() - begin) * 1e3)
        for matcher in matchers:
            matcher.accept(token_id)
            assert not matcher.state.is_error(), matcher.state.get_error()
    return times


def _apply(vocab_size: int, repeats: int) -> float:
    logits, masks = torch.randn(8, vocab_size), torch.full((8, -(-vocab_size // 32)), 7, dtype=torch.int32)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        apply_bitmask(logits, masks)
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=_EMBEDDED, help="folder of the tokenizer")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    tokenizer = Tokenizer.from_folder(options.folder)
    compiler = GrammarCompiler(
        tokenizer.token_bytes,
        tokenizer.encode_text,
        vocab_size=tokenizer.vocab_size,
        hidden_ids=tokenizer.hidden_ids,
        stop_ids=tokenizer.stop_ids,
    )
    begin = time.perf_counter()
    compiler.prepare()
    result: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "prepare": (time.perf_counter() - begin) * 1e3}
    for name, (grammar, text) in _CASES.items():
        result[name] = measure(compiler, tokenizer, grammar, text, options.repeats)
        print(name, {key: round(value, 3) for key, value in result[name].items()})
    result["apply"] = _apply(tokenizer.vocab_size, options.repeats)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
