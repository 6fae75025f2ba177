"""A request's grammar, and the checks before any work is done for it."""

from __future__ import annotations

import random

import pytest

from ternvl.engine.engine import Engine
from ternvl.engine.reference import ReferenceEngine
from ternvl.engine.request import Request, check_params, check_prompt
from ternvl.errors import ContextLengthError, RequestError
from ternvl.params import Grammar, SamplingParams
from ternvl.sampling.grammar import GrammarCompiler
from ternvl.types import Prompt
from tests.engine.tiny import CONFIG, STOP_IDS, VOCAB_SIZE, make_engine, make_model, text_prompt
from tests.fakes import tiny_tokenizer

YES = SamplingParams(grammar=Grammar.of("choice", ["yes"]))


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    tokenizer = tiny_tokenizer()
    return GrammarCompiler(
        tokenizer.token_bytes,
        tokenizer.encode_text,
        vocab_size=tokenizer.vocab_size,
        hidden_ids=tokenizer.hidden_ids,
        stop_ids=tokenizer.stop_ids,
    )


def test_a_request_without_a_grammar_has_no_matcher() -> None:
    assert Request("a", Prompt((8,)), SamplingParams()).matcher() is None


def test_each_matcher_begins_at_the_beginning_of_the_grammar(compiler: GrammarCompiler) -> None:
    assert YES.grammar is not None
    request = Request("a", Prompt((8,)), YES, grammar=compiler.compile(YES.grammar))
    ids = tiny_tokenizer().encode_text("yes")
    for _ in range(2):
        matcher = request.matcher()
        assert matcher is not None
        assert matcher.num_allowed(ids) == len(ids)
        assert [matcher.accept(token_id) for token_id in ids] == [False] * (len(ids) - 1) + [True]


@pytest.mark.parametrize("kind", ["engine", "reference"])
def test_a_grammar_that_is_not_compiled_is_refused(kind: str) -> None:
    request = Request("a", text_prompt(random.Random(1), 5), YES)
    with pytest.raises(RequestError, match=r"GrammarCompiler\.compile") as refusal:
        request.matcher()
    assert refusal.value.param == "grammar"
    engine: Engine | ReferenceEngine = make_engine(make_model())
    if kind == "reference":
        engine = ReferenceEngine(make_model(), engine.config, stop_ids=STOP_IDS)
    with pytest.raises(RequestError, match=r"GrammarCompiler\.compile"):
        engine.add(request)
    assert not engine.has_work


@pytest.mark.parametrize(
    ("params", "param"),
    [
        (SamplingParams(stop_token_ids=(1, VOCAB_SIZE)), "stop_token_ids[1]"),
        (SamplingParams(allowed_token_ids=(VOCAB_SIZE,)), "allowed_token_ids[0]"),
        (SamplingParams(logit_bias=((VOCAB_SIZE, 1.0),)), f"logit_bias.{VOCAB_SIZE}"),
        (SamplingParams(allowed_token_ids=STOP_IDS, min_tokens=1), "allowed_token_ids"),
        (
            SamplingParams(allowed_token_ids=(9,), stop_token_ids=(9,), min_tokens=1, ignore_eos=True),
            "allowed_token_ids",
        ),
    ],
)
def test_parameters_that_the_vocabulary_cannot_serve(params: SamplingParams, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        check_params(params, VOCAB_SIZE, STOP_IDS)
    assert refusal.value.param == param


def test_parameters_at_the_end_of_the_vocabulary() -> None:
    last = VOCAB_SIZE - 1
    check_params(
        SamplingParams(stop_token_ids=(last,), allowed_token_ids=(0, last), logit_bias=((last, 1.0),), min_tokens=1),
        VOCAB_SIZE,
        STOP_IDS,
    )
    check_params(SamplingParams(allowed_token_ids=STOP_IDS), VOCAB_SIZE, STOP_IDS)
    check_params(SamplingParams(allowed_token_ids=STOP_IDS, min_tokens=1, ignore_eos=True), VOCAB_SIZE, STOP_IDS)


def test_errors_about_a_prompt_name_what_the_request_calls_it() -> None:
    for prompt, error in ((Prompt(()), RequestError), (Prompt((8,) * 6), ContextLengthError)):
        with pytest.raises(error) as refusal:
            check_prompt(prompt, CONFIG, 5, path="input")
        assert refusal.value.param == "input"
    check_prompt(Prompt((8,) * 5), CONFIG, 5)
