"""The string of an object comes out as JSON's own reader has it, however the object is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternvl.output.json_string import StringMember

TEXTS = st.text(alphabet=st.sampled_from(list('ab"\\/\n\t\r\b\f{}é日\U0001d54f:')), max_size=20)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    stops = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[start:stop] for start, stop in pairwise(stops)]


@given(TEXTS, st.lists(st.integers(0, 60), max_size=8), st.sampled_from([": ", ":", " :\n"]))
def test_the_string_is_that_of_json(text: str, cuts: list[int], colon: str) -> None:
    written = "{" + f'"input"{colon}{json.dumps(text, ensure_ascii=False)}' + "}"
    member = StringMember()
    assert "".join(member.decode(piece) for piece in pieces_of(written, cuts)) == text == json.loads(written)["input"]


@pytest.mark.parametrize("size", range(len('{"input": "a\\nb"}') + 1))
def test_what_is_cut_is_the_beginning(size: int) -> None:
    assert "a\nb".startswith(StringMember().decode('{"input": "a\\nb"}'[:size]))
