"""The text is shown up to the first stop string, wherever the pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternvl.errors import RequestError
from ternvl.output.stop import StopStrings

LETTERS = st.text("ab", max_size=20)


def before_first_stop(text: str, stop: list[str]) -> tuple[str, bool]:
    starts = [text.find(string) for string in stop if text.find(string) >= 0]
    return (text[: min(starts)], True) if starts else (text, False)


@given(st.lists(LETTERS), st.lists(st.text("ab", min_size=1, max_size=6), max_size=4))
def test_pieces_equal_a_search_in_the_whole_text(pieces: list[str], stop: list[str]) -> None:
    stops = StopStrings(stop)
    shown = "".join([stops.decode(piece) for piece in pieces] + [stops.flush()])
    assert (shown, stops.stopped) == before_first_stop("".join(pieces), stop)


@given(st.lists(LETTERS), st.lists(st.text("ab", min_size=1, max_size=6), max_size=4))
def test_an_included_stop_string_ends_the_shown_text(pieces: list[str], stop: list[str]) -> None:
    before, text = StopStrings(stop), StopStrings(stop, include=True)
    shown = "".join([before.decode(piece) for piece in pieces] + [before.flush()])
    longer = "".join([text.decode(piece) for piece in pieces] + [text.flush()])
    assert longer == shown + (text.found or "")
    assert "".join(pieces).startswith(longer)
    assert text.found == before.found
    assert text.found is None or text.found in stop


@given(st.lists(LETTERS), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4))
def test_text_is_held_back_only_while_it_may_begin_a_stop_string(pieces: list[str], stop: list[str]) -> None:
    stops = StopStrings(stop)
    received = shown = ""
    for piece in pieces:
        received += piece
        shown += stops.decode(piece)
        held = received[len(shown) :]
        assert (
            stops.stopped
            or any(string.startswith(held) and string != held for string in stop)
            or (any(string in held for string in stop) and len(held) < max(map(len, stop)))
        )


def test_text_passes_at_once_if_it_cannot_begin_a_stop_string() -> None:
    stops = StopStrings(["\n\n", "END"])
    assert [stops.decode(piece) for piece in ("Hello", " E", "NJOY\n", "x")] == ["Hello", " ", "ENJOY", "\nx"]
    assert (stops.flush(), stops.stopped) == ("", False)


def test_a_stop_string_over_many_pieces_is_never_shown() -> None:
    stops = StopStrings(["STOP"])
    assert [stops.decode(piece) for piece in ("a S", "T", "O", "P b", "c")] == ["a ", "", "", "", ""]
    assert (stops.flush(), stops.stopped) == ("", True)


def test_an_earlier_match_that_is_still_possible_is_waited_for() -> None:
    stops = StopStrings(["bcde", "d"])
    assert (stops.decode("abcd"), stops.stopped) == ("a", False)
    assert (stops.decode("e"), stops.stopped) == ("", True)
    stops = StopStrings(["bcde", "d"])
    assert (stops.decode("abcd"), stops.decode("x"), stops.stopped) == ("a", "bc", True)
    stops = StopStrings(["bcde", "d"])
    assert (stops.decode("abcd"), stops.flush(), stops.stopped) == ("a", "bc", True)


def test_held_text_is_returned_at_the_end() -> None:
    stops = StopStrings(["STOP"])
    assert (stops.decode("a STO"), stops.flush(), stops.stopped) == ("a ", "STO", False)


def test_without_stop_strings_all_text_passes() -> None:
    stops = StopStrings([])
    assert (stops.decode("abc"), stops.flush(), stops.stopped) == ("abc", "", False)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty") as caught:
        StopStrings(["a", ""])
    assert caught.value.param == "stop[1]"
