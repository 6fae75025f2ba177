"""Tokens to deltas: characters, stop strings, tool calls, log probabilities."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import closing
from dataclasses import replace

import pytest

from ternvl.answer.choice import Choices, generate, generate_on_thread
from ternvl.answer.delta import ChoiceDecoder, Delta
from ternvl.engine.request import Request
from ternvl.errors import EngineError, UnavailableError
from ternvl.params import SamplingParams
from ternvl.types import FinishReason, Prompt, TokenLogprobs, TokenOutput
from tests.fakes import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": [1, "é"]}}\n</tool_call>'


def decode(
    text: str,
    *,
    step: int = 1,
    end: FinishReason = FinishReason.STOP,
    tools: bool = False,
    params: SamplingParams | None = None,
) -> list[Delta]:
    """Deltas of an answer whose tokens come `step` at a time."""
    params = params or SamplingParams()
    decoder = ChoiceDecoder(0, TOKENIZER, params, ["look"] if tools else [])
    ids = TOKENIZER.encode_text(text)
    groups = [tuple(ids[start : start + step]) for start in range(0, len(ids), step)]
    outputs = [TokenOutput("r", group, None, _logprobs(group, params)) for group in groups]
    deltas = []
    for output in [*outputs, TokenOutput("r", (), end)]:
        deltas.append(decoder.decode(output))
        if deltas[-1].finish_reason:
            break
    return deltas


def _logprobs(ids: Sequence[int], params: SamplingParams) -> tuple[TokenLogprobs, ...]:
    return () if params.logprobs is None else tuple(TokenLogprobs(-float(token_id), 1) for token_id in ids)


def text_of(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("step", [1, 2, 7])
def test_text_is_whole_characters_and_complete(step: int) -> None:
    text = "the héron 🦤 in 上海 <ref>bird</ref>"
    deltas = decode(text, step=step)
    assert text_of(deltas) == text
    assert all("\ufffd" not in delta.text for delta in deltas)
    assert sum(delta.num_tokens for delta in deltas) == len(TOKENIZER.encode_text(text))
    assert [delta.finish_reason for delta in deltas[-2:]] == [None, "stop"]


def test_the_length_reason_and_a_character_that_never_ended() -> None:
    first_byte = TOKENIZER.encode_text("é")[0]
    decoder = ChoiceDecoder(0, TOKENIZER, SamplingParams())
    assert decoder.decode(TokenOutput("r", (first_byte,))).text == ""
    last = decoder.decode(TokenOutput("r", (), FinishReason.LENGTH))
    assert (last.text, last.finish_reason) == ("\ufffd", "length")


@pytest.mark.parametrize("step", [1, 3, 50])
def test_a_stop_string_ends_the_answer_and_is_never_shown(step: int) -> None:
    deltas = decode("one two END three", step=step, params=SamplingParams(stop=("END", "never")))
    assert text_of(deltas) == "one two "
    assert deltas[-1].finish_reason == "stop"
    assert sum(delta.num_tokens for delta in deltas) == len(TOKENIZER.encode_text("one two END"))


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    deltas = decode("one EN", end=FinishReason.LENGTH, params=SamplingParams(stop=("END",)))
    assert text_of(deltas) == "one EN"
    assert deltas[-1].finish_reason == "length"


@pytest.mark.parametrize("step", [1, 4, 200])
def test_tool_calls(step: int) -> None:
    deltas = decode("So: " + CALL + "\n" + CALL, step=step, tools=True)
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert text_of(deltas) == "So: "
    assert [(call.index, call.name) for call in calls if call.name] == [(0, "look"), (1, "look")]
    assert len({call.id for call in calls if call.id}) == 2
    for index in (0, 1):
        assert "".join(call.arguments for call in calls if call.index == index) == '{"at": [1, "é"]}'
    assert deltas[-1].finish_reason == "tool_calls"


def test_without_tools_a_call_is_text() -> None:
    deltas = decode(CALL)
    assert (text_of(deltas), deltas[-1].finish_reason) == (CALL, "stop")


def test_a_broken_call_is_text_and_no_reason_of_its_own() -> None:
    broken = '<tool_call>{"name": }</tool_call>'
    deltas = decode(broken, tools=True)
    assert (text_of(deltas), deltas[-1].finish_reason) == (broken, "stop")


def test_a_call_that_was_cut_is_none_to_carry_out() -> None:
    for end, reason in ((FinishReason.LENGTH, "length"), (FinishReason.STOP, "tool_calls")):
        deltas = decode(CALL.removesuffix("}\n</tool_call>"), end=end, tools=True)
        assert deltas[-1].finish_reason == reason
    deltas = decode(CALL, params=SamplingParams(stop=(", ",)), tools=True)
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert deltas[-1].finish_reason == "stop"
    assert "".join(call.arguments for call in calls) == ""
    deltas = decode(CALL, params=SamplingParams(stop=("1,",)), tools=True)
    assert "".join(call.arguments for delta in deltas for call in delta.tool_calls) == '{"at": ['
    assert deltas[-1].finish_reason == "stop"


def test_a_stop_string_behind_the_arguments_leaves_the_call_whole() -> None:
    deltas = decode(CALL, params=SamplingParams(stop=("</tool_call>",)), tools=True)
    assert "".join(call.arguments for delta in deltas for call in delta.tool_calls) == '{"at": [1, "é"]}'
    assert deltas[-1].finish_reason == "tool_calls"


def test_an_answer_cut_off_after_a_call_ended_for_its_length() -> None:
    assert decode(CALL, end=FinishReason.LENGTH, tools=True)[-1].finish_reason == "length"


@pytest.mark.parametrize("step", [1, 5, 50])
def test_logprobs_are_of_the_shown_tokens(step: int) -> None:
    deltas = decode("ab <b> cENd", step=step, params=SamplingParams(stop=("EN",), logprobs=0))
    listed = [token_id for delta in deltas for token_id, _ in delta.logprobs]
    assert listed == TOKENIZER.encode_text("ab <b> c")
    assert [pair[1].logprob for delta in deltas for pair in delta.logprobs] == [-float(i) for i in listed]


def test_a_hidden_token_has_no_logprob_but_counts() -> None:
    (hidden, *_) = TOKENIZER.stop_ids
    decoder = ChoiceDecoder(0, TOKENIZER, SamplingParams(logprobs=0))
    delta = decoder.decode(TokenOutput("r", (hidden,), FinishReason.LENGTH, (TokenLogprobs(-1.0, 1),)))
    assert (delta.text, delta.logprobs, delta.num_tokens) == ("", (), 1)


class Script:
    """A service that plays outputs back to each request; an exception among them is raised."""

    def __init__(self, *items: TokenOutput | Exception) -> None:
        self.items = items
        self.num_open = 0
        self.aborted: list[str] = []

    async def submit(self, *requests: Request, deadline: float | None = None) -> AsyncGenerator[TokenOutput]:
        self.num_open += 1
        try:
            for item in self.items:
                for request in requests:
                    await asyncio.sleep(0)
                    if isinstance(item, Exception):
                        raise item
                    yield replace(item, request_id=request.id)
        finally:
            self.num_open -= 1

    def outputs(self, *requests: Request) -> Generator[TokenOutput]:
        self.num_open += 1
        try:
            for item in self.items:
                for request in requests:
                    if isinstance(item, Exception):
                        raise item
                    yield replace(item, request_id=request.id)
        finally:
            self.num_open -= 1

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


def collect(script: Script, *, n: int = 1, most: int = 100, stop: tuple[str, ...] = ()) -> list[Delta]:
    """What an event loop gets, after a thread has got the same."""
    params = SamplingParams(stop=stop)
    requests = [Request(f"r-{index}", Prompt((1,)), params) for index in range(n)]

    def choices() -> Choices:
        script.aborted.clear()
        decoders = {each.id: ChoiceDecoder(index, TOKENIZER, params) for index, each in enumerate(requests)}
        return Choices(decoders, script.abort)

    async def run() -> list[Delta]:
        deltas = generate(script, requests, choices())
        taken: list[Delta] = []
        async for delta in deltas:
            taken.append(delta)
            if len(taken) == most:
                break
        await deltas.aclose()
        return taken

    on_thread: list[Delta] = []
    try:
        with closing(generate_on_thread(script, requests, choices())) as deltas:
            on_thread += itertools.islice(deltas, most)
    except Exception as error:
        with pytest.raises(type(error)):
            asyncio.run(run())
        raise
    assert script.num_open == 0
    assert asyncio.run(run()) == on_thread
    return on_thread


def token(text: str, end: FinishReason | None = None) -> TokenOutput:
    return TokenOutput("r", tuple(TOKENIZER.encode_text(text)), end)


def test_choices_are_merged_and_all_end() -> None:
    deltas = collect(Script(token("a"), token("b", FinishReason.STOP)), n=3)
    for index in range(3):
        assert text_of([delta for delta in deltas if delta.index == index]) == "ab"
    assert sum(delta.finish_reason == "stop" for delta in deltas) == 3


@pytest.mark.parametrize("stop", [(), ("x",)])
def test_leaving_closes_every_request(stop: tuple[str, ...]) -> None:
    script = Script(*[token("x")] * 1000)
    assert len(collect(script, n=2, most=2, stop=stop)) == 2
    assert script.num_open == 0


def test_a_stop_string_closes_the_request_before_its_end() -> None:
    script = Script(token("ab"), token("STOP"), token("never", FinishReason.STOP))
    assert text_of(collect(script, n=2, stop=("STOP",))) == "abab"
    assert script.num_open == 0
    assert script.aborted == ["r-0", "r-1"]


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ([EngineError("broken")], EngineError),
        ([token("a")], EngineError),
        ([token("a"), TokenOutput("r", (), FinishReason.ABORT)], UnavailableError),
    ],
)
def test_the_first_error_ends_all_choices(items: list[TokenOutput | Exception], error: type[Exception]) -> None:
    script = Script(*items)
    with pytest.raises(error):
        collect(script, n=3)
    assert script.num_open == 0
