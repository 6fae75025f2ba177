"""Grammars that are tried in processes, and what becomes of those that take too much."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

import ternvl
from ternvl.answer.ask import compiler_for
from ternvl.errors import RequestError
from ternvl.params import Grammar
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.sampling.grammar import GrammarCompiler
from ternvl.sampling.sources import source
from ternvl.sampling.trial import trials as trials_module
from ternvl.sampling.trial.trials import GrammarTrials, is_small
from tests.waiting import eventually

SLOW = Grammar.of("regex", "a?" * 10_900 + "a" * 10_900, param="guided_regex")
"""Compiling takes more than a second of an ordinary processor, of which tests allow a third."""


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    tokenizer = Tokenizer.from_folder(Path(ternvl.__file__).parent / "embedded" / "ternvl-nano")
    return compiler_for(tokenizer, tokenizer.vocab_size)


@pytest.fixture(scope="module")
def trials(compiler: GrammarCompiler) -> Iterator[GrammarTrials]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trials_module, "MAX_SECONDS", 0.3)
        trials = compiler.trials()
        yield trials
    trials.close()


def reason(trials: GrammarTrials, grammar: Grammar, client: str = "a") -> str:
    return trials.reason(source(grammar).text, grammar.param, client)


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (Grammar.of("regex", "[0-9]+"), True),
        (Grammar.of("json_schema", {"type": "object", "properties": {"a": {"type": "string"}}}), True),
        (Grammar.of("regex", "a" * 4_001), False),
        (SLOW, False),
        (Grammar.of("regex", "((a?){50}){50}{50}"), False),
        (Grammar.of("json_schema", {"type": "string", "pattern": "^(a?){3000}$"}), False),
        (Grammar.of("regex", "a{" + "9" * 3_000 + "}"), False),
    ],
)
def test_what_is_small_with_its_repetitions_written_out(grammar: Grammar, expected: bool) -> None:
    assert is_small(grammar) is expected


def test_what_passes_and_what_does_not_as_the_compiler_says(compiler: GrammarCompiler, trials: GrammarTrials) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 500} for i in range(50)}}
    assert reason(trials, Grammar.of("json_schema", schema)) == ""
    compiler.compile(Grammar.of("json_schema", schema), trial=lambda text, param: trials.reason(text, param, "a"))
    broken = Grammar.of("regex", "a{500}(?=b)")
    with pytest.raises(RequestError) as caught:
        compiler.compile(broken)
    assert str(caught.value) == f"grammar cannot be served: {reason(trials, broken)}."


def test_one_that_takes_too_long_is_ended_and_costs_nobody_else_anything(trials: GrammarTrials) -> None:
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(reason, trials, SLOW)
        for number in range(3):
            assert reason(trials, Grammar.of("regex", f"[a-z]{{{number + 1}000}}"), "b") == ""
        with pytest.raises(RequestError) as caught:
            slow.result(120)
    assert (caught.value.param, caught.value.code) == ("guided_regex", "grammar_limit")
    assert "guided_regex cannot be served: it takes more than 0.3 s to compile" in str(caught.value)
    assert reason(trials, Grammar.of("regex", "a{2000}")) == ""


def test_one_whose_tokens_are_hard_to_find_is_refused(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials_module, "_MAX_MASK_SECONDS", 0.01)
    rules = "\n".join(f'r{i}: "a"? | "b" r{i}' for i in range(2_000))
    grammar = Grammar("lark", "start: " + " ".join(f"r{i}" for i in range(2_000)) + "\n" + rules)
    trials = compiler.trials()
    try:
        with pytest.raises(RequestError) as caught:
            reason(trials, grammar)
    finally:
        trials.close()
    assert "it takes more than 0.01 s to find the tokens that may begin an answer" in str(caught.value)
    assert caught.value.code == "grammar_limit"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
def test_one_that_takes_too_much_memory(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "MAX_MEMORY", 1024)  # of which nothing is free
    trials = compiler.trials()
    try:
        with pytest.raises(RequestError, match="more than 0 MiB of memory to compile"):
            reason(trials, Grammar.of("regex", r"\w\W" * 3_000))
    finally:
        trials.close()


def test_a_worker_that_crashes_costs_one_grammar(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "MAX_SECONDS", 60.0)
    trials = compiler.trials()
    with ThreadPoolExecutor(1) as threads, closing(trials):
        slow = threads.submit(reason, trials, SLOW)
        eventually(lambda: any(worker not in trials.workers._idle for worker in trials.workers._all))
        (busy,) = [worker for worker in trials.workers._all if worker not in trials.workers._idle]
        os.kill(busy._process.pid, signal.SIGKILL)
        with pytest.raises(RequestError, match="of memory to compile"):
            slow.result(60)
        assert reason(trials, Grammar.of("regex", "a{2000}")) == ""


def test_the_search_for_the_part_that_is_the_cause_ends(compiler: GrammarCompiler) -> None:
    tried: list[str] = []

    def trial(text: str, param: str) -> str:
        tried.append(param)
        return "it is slow" if param == "tools" else ""

    tools = [{"path": f"tools[{i}]", "name": f"t{i}", "parameters": {"maxProperties": 9_999}, "strict": False}
             for i in range(3)]  # fmt: skip
    described = {"tools": tools, "parallel": False, "required": True, "answer": None, "closed": True}
    grammar = Grammar.of("tools", json.dumps(described), param="tools")
    with pytest.raises(RequestError, match="tools cannot be served: it is slow"):
        compiler.compile(grammar, trial=trial)
    assert tried == ["tools", "tools[0]", "tools[1]", "tools[2]"]


def test_a_worker_imports_little() -> None:
    code = "import sys\nimport ternvl.sampling.trial.worker\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]
