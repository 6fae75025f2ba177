"""Server-sent events, however their bytes are cut."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternvl.azion import EventDecoder


def decoded(pieces: list[bytes]) -> list[str]:
    decoder = EventDecoder()
    return [data for piece in pieces for data in decoder.decode(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in pairwise(edges)]


ONE_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@given(
    st.lists(st.lists(ONE_LINE, min_size=1, max_size=3), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 10_000)),
)
def test_events_come_back_whatever_the_line_ends_and_cuts(events: list[list[str]], end: str, places: list[int]) -> None:
    lines = [line for event in events for line in (": comment", "id: 1", *(f"data: {line}" for line in event), "")]
    text = "".join(line + end for line in lines) + ":"  # which shows that a last CR is not half of a CRLF
    assert decoded(cut(text.encode(), places)) == ["\n".join(event) for event in events]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("data:a\n\ndata:  b\n\n", ["a", " b"]),
        ("data\n\ndata:\n\n", ["", ""]),
        ("database: x\nevent: y\n\n", []),
        ("data: a\n\ndata: not ended\n", ["a"]),
        ("\ufeffdata: a\n\n\n\ndata: \ufeffb\n\n", ["a", "\ufeffb"]),
    ],
)
def test_the_standards_corners(text: str, events: list[str]) -> None:
    assert decoded([text.encode()]) == events
    assert decoded([bytes([byte]) for byte in text.encode()]) == events


def test_unicode_line_separators_end_no_line() -> None:
    text = 'data: {"content":"a\u2028b\u0085c\x0bd"}\n\n'
    assert decoded([text.encode()]) == re.findall("data: (.*)\n\n", text)
