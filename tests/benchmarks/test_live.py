"""What the drills, the fuzzer, the overload and the soak share: judgements, tables in pages, pictures."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.faults.__main__ import DRILLS
from benchmarks.live.ask import DONE, Seen, counted
from benchmarks.live.chart import Panel, draw
from benchmarks.live.page import rows_between, table, write_between
from benchmarks.live.watch import Watch, percentile
from benchmarks.overload import verdicts


def test_a_table_is_written_between_comments_and_read_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n")
    rows = [("one", "x | y"), ("two", "")]
    write_between(page, "a", table(("name", "value"), rows))
    assert rows_between(page, "a") == {"one": ["one", "x | y"], "two": ["two", ""]}
    assert page.read_text().startswith("before\n<!-- a:begin -->\n| name | value |\n")
    assert page.read_text().endswith("<!-- a:end -->\nafter\n")
    with pytest.raises(ValueError, match="b:begin"):
        write_between(page, "b", "")


def test_a_stream_is_whole_only_with_its_last_event() -> None:
    whole = Seen(200, b'data: {"x": 1}\n\n' + DONE, is_stream=True)
    failed = Seen(200, b'data: {"error": {"message": "no"}}\n\n', is_stream=True)
    cut = Seen(200, b"data: {", is_cut=True, is_stream=True)
    assert [each.is_whole for each in (whole, failed, cut, Seen(0), Seen(404, b"{}"))] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert failed.message == "no"
    assert counted([whole, whole, failed, cut, Seen(0)]) == (
        "200, cut, no answer, stream ended by an error event, 2 x stream whole"
    )


def test_growth_is_that_after_the_warm_up() -> None:
    watch = Watch(None)  # type: ignore[arg-type]  # it is not entered
    watch.samples = [(float(second), 50 + second if second < 50 else 100 + second // 90) for second in range(100)]
    assert watch.growth(50) == pytest.approx(0.01)
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([], 0.5) == 0.0


def test_a_picture_is_xml_with_every_line(tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    draw([Panel("a < b", {"one": [(0, 1), (2, 30)], "two": [(0, 0)]}, 12), Panel("empty", {})], path)
    tree = ElementTree.parse(path)
    assert len(tree.findall(".//{*}polyline")) == 3
    assert "a < b" in [text.text for text in tree.findall(".//{*}text")]


def test_a_worse_percentile_breaks_a_verdict() -> None:
    even = {"first_p99": 1.0, "whole_p99": 2.0}
    found = {"even": even, "over": {"first_p99": 2.1, "whole_p99": 3.9}, "wrong": 0, "growth": 0.02}
    assert list(verdicts(found).values()) == [True, False, True, False]


def test_there_are_many_drills() -> None:
    assert len(DRILLS) >= 25
