"""Reasoning before an answer, the same wherever the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternvl.output.reasoning import ReasoningParser

CASES = [
    ("Hello.", "", "Hello."),
    ("<think>Hm.</think>Hello.", "Hm.", "Hello."),
    ("\n<think>\nHm.\n</think>\n\nHello. ", "\nHm.\n", "Hello. "),
    ("<think></think>", "", ""),
    ("<think>It ends", "It ends", ""),
    ("<think>It ends </thi", "It ends </thi", ""),
    ("<think>1 < 2 </th></think>a", "1 < 2 </th>", "a"),
    ("<thin", "", "<thin"),
    ("  ", "", "  "),
    ("So: <think>Hm.</think>", "", "So: <think>Hm.</think>"),
    ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
]


def parse(pieces: list[str]) -> tuple[str, str]:
    parser = ReasoningParser()
    split = [*(parser.decode(piece) for piece in pieces), parser.flush()]
    return "".join(reasoning for reasoning, _ in split), "".join(text for _, text in split)


@pytest.mark.parametrize(("text", "reasoning", "answer"), CASES)
def test_reasoning_and_answer(text: str, reasoning: str, answer: str) -> None:
    assert parse([text]) == (reasoning, answer)
    assert parse(list(text)) == (reasoning, answer)


FRAGMENTS = st.sampled_from(["<think>", "</think>", "<thi", "</", " ", "\n", "a", "<", ">"])


@given(st.lists(FRAGMENTS, max_size=8).map("".join), st.data())
def test_the_cuts_change_nothing(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(pieces) == parse([text])


def test_certain_text_is_not_held_back() -> None:
    parser = ReasoningParser()
    assert parser.decode("<think>so") == ("so", "")
    assert parser.decode(" on</") == (" on", "")
    assert parser.decode("think> ") == ("", "")
    assert parser.decode("Yes") == ("", "Yes")
    assert ReasoningParser().decode("Yes") == ("", "Yes")
