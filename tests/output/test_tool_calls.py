"""Tool calls in a stream of text: returned early, never lost, and the same wherever the text is cut."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternvl.output.tool_calls import TextDelta, ToolCallDelta, ToolCallParser

NAMES = ("weather", "f", 'say "hi"', "größe")


@dataclass
class Answer:
    text: str = ""
    calls: list[list[str]] = field(default_factory=list)
    """[name, arguments] of each call."""
    is_cut: bool = False


def parse(pieces: list[str]) -> Answer:
    parser, answer = ToolCallParser(NAMES), Answer()
    deltas = [delta for piece in pieces for delta in parser.decode(piece)] + parser.flush()
    for delta in deltas:
        if isinstance(delta, TextDelta):
            answer.text += delta.text
            assert delta.text
        elif delta.id is not None:
            assert delta.index == len(answer.calls)
            assert delta.name in NAMES
            assert delta.arguments == ""
            assert re.fullmatch(r"call_[0-9a-f]{24}", delta.id)
            answer.calls.append([delta.name, delta.arguments])
        else:
            assert delta.index == len(answer.calls) - 1
            assert delta.name is None
            assert delta.arguments
            answer.calls[delta.index][1] += delta.arguments
    assert parser.num_calls == len(answer.calls)
    answer.is_cut = parser.is_cut
    return answer


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


WEATHER = '{"name": "weather", "arguments": {"city": "Rio", "days": [1, 2]}}'
RIO = ["weather", '{"city": "Rio", "days": [1, 2]}']

CASES = [
    ("Hello.", "Hello.", []),
    (call(WEATHER), "", [RIO]),
    ("Let me look.\n" + call(WEATHER), "Let me look.\n", [RIO]),
    (call(WEATHER) + "\n" + call('{"name": "f", "arguments": {}}') + "\n", "", [RIO, ["f", "{}"]]),
    (call(WEATHER) + call(WEATHER), "", [RIO, RIO]),
    (call(WEATHER) + " \n Done. ", "Done. ", [RIO]),
    (call('{"name": "say \\"hi\\"", "arguments": {}}'), "", [['say "hi"', "{}"]]),
    (call('{"name": "größe", "arguments": {"a": 1.50}}'), "", [["größe", '{"a": 1.50}']]),
    (call('{"name": "f", "arguments": {"a": "}</tool_call>\\"{"}}'), "", [["f", '{"a": "}</tool_call>\\"{"}']]),
    (call('{"name": "f", "arguments": {"a": "\\\\"}}'), "", [["f", '{"a": "\\\\"}']]),
    (call('{"name": "f", "arguments": {"a": {"b": [{"c": "é"}]}}}'), "", [["f", '{"a": {"b": [{"c": "é"}]}}']]),
    ("<tool_call>\n" + WEATHER, "", [RIO]),
    ("<tool_call>\n" + WEATHER[:-1], "", [RIO]),
    ("<tool_call>\n" + WEATHER + "\n</tool_", "", [RIO]),
    ("<tool_call>\n<tool_call>\n" + WEATHER + "\n</tool_call>", "<tool_call>\n", [RIO]),
    ("if a <tool and b < c: <tool_cal", "if a <tool and b < c: <tool_cal", []),
    ("</tool_call> alone", "</tool_call> alone", []),
]

CUT = [
    ('<tool_call>\n{"name": "f", "arguments": {', ["f", "{"]),
    ('<tool_call>\n{"name": "f", "arguments": {"a": "}</tool_call>', ["f", '{"a": "}</tool_call>']),
    ('<tool_call>\n{"name": "f", "arguments": {"a": {}', ["f", '{"a": {}']),
]

NO_CALLS = [
    call("not json"),
    call("{name: f}"),
    call('{"arguments": {}}'),
    call('{"name": 7}'),
    call('{"name": ""}'),
    call('{"name": "unknown", "arguments": {}}'),
    call('{"name": "ff", "arguments": {}}'),
    call('["name"]'),
    call('{"name": "f", "arguments": []}'),
    call('{"name": "f"} and more'),
    call('{"name": '),
    '<tool_call>\n{"name": "f", "arguments": ',
    '<tool_call>\n{"na',
    "<tool_call>",
    "<tool_call></tool_call>",
]


@pytest.mark.parametrize(("text", "shown", "calls"), CASES)
def test_text_and_calls(text: str, shown: str, calls: list[list[str]]) -> None:
    assert parse([text]) == Answer(shown, calls)
    assert parse(list(text)) == Answer(shown, calls)


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert parse([text]) == Answer(text, [])
    assert parse(list(text)) == Answer(text, [])


@pytest.mark.parametrize(("text", "expected"), CUT)
def test_a_call_that_is_cut_off_has_its_arguments_so_far(text: str, expected: list[str]) -> None:
    assert parse([text]) == Answer("", [expected], is_cut=True)
    assert parse(list(text)) == Answer("", [expected], is_cut=True)


def test_no_nesting_is_too_deep() -> None:
    arguments = '{"a": ' * 100_000 + "0" + "}" * 100_000
    assert parse([call(f'{{"name": "f", "arguments": {arguments}}}')]) == Answer("", [["f", arguments]])


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "\n",
        " ",
        "{",
        "}",
        '"',
        "\\",
        '"name": "f"',
        WEATHER,
        "text",
        "<",
        ", ",
        "[",
    ]
    + [case[0] for case in CASES]
    + NO_CALLS
    + [case[0] for case in CUT]
)


@given(st.lists(FRAGMENTS, max_size=8).map("".join), st.data())
def test_the_cuts_change_nothing(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(pieces) == parse([text]) == parse(list(text))


@given(st.lists(FRAGMENTS, max_size=8).map("".join))
def test_nothing_is_lost(text: str) -> None:
    parser, shown = ToolCallParser(NAMES), []
    for delta in [*parser.decode(text), *parser.flush()]:
        shown.append(delta.text if isinstance(delta, TextDelta) else delta.arguments)
    rest = iter(text)
    assert all(char in rest for char in "".join(shown))
    assert parser.num_calls or "".join(shown) == text


@pytest.mark.parametrize("text", [text for text in NO_CALLS if text.endswith("</tool_call>")])
def test_a_call_behind_a_broken_one_is_found(text: str) -> None:
    assert parse([text + "\n" + call(WEATHER)]) == Answer(text + "\n", [RIO])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(), JSON, max_size=3)), max_size=3),
    st.booleans(),
)
def test_every_call_that_json_can_write_is_read_back(
    calls: list[tuple[str, dict[str, object]]], ascii_only: bool
) -> None:
    def written(name: str, arguments: dict[str, object]) -> str:
        name = json.dumps(name, ensure_ascii=False)
        return call(f'{{"name": {name}, "arguments": {json.dumps(arguments, ensure_ascii=ascii_only)}}}')

    answer = parse(list("Well: " + "\n".join(written(*each) for each in calls)))
    assert answer.text == "Well: "
    assert [(name, json.loads(arguments)) for name, arguments in answer.calls] == calls


def test_text_is_held_back_only_while_it_may_begin_a_tag() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.decode("Hello <") == [TextDelta("Hello ")]
    assert parser.decode("b>") == [TextDelta("<b>")]
    assert parser.decode("<tool_call> x") == [TextDelta("<tool_call>"), TextDelta(" x")]


def test_the_first_delta_names_the_call_and_the_others_extend_its_arguments() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.decode('<tool_call>\n{"name": "f", "arguments": ') == []
    first, second = parser.decode('{"a": ')
    assert isinstance(first, ToolCallDelta)
    assert (first.index, first.name, first.arguments) == (0, "f", "")
    assert second == ToolCallDelta(0, None, None, '{"a": ')
    assert parser.decode("[1,") == [ToolCallDelta(0, None, None, "[1,")]
    assert parser.is_cut
    assert parser.decode(" 2]}}") == [ToolCallDelta(0, None, None, " 2]}")]
    assert not parser.is_cut
    assert parser.decode("\n</tool_call>") == parser.flush() == []


def test_ids_differ() -> None:
    deltas = ToolCallParser(NAMES).decode(call(WEATHER) * 20)
    assert len({delta.id for delta in deltas if isinstance(delta, ToolCallDelta) and delta.id}) == 20
