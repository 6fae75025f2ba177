"""`GET /debug/profile`: that it shows what runs, in forms that others read, and disturbs nobody."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from ternvl.server.debug import profiler
from tests.server.calling import error_of
from tests.server.fakes import scripted_llm, serving
from tests.waiting import eventually

PROFILE = "/debug/profile"


def count_up(stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        for _ in range(1000):
            number += 1


@contextmanager
def at_work() -> Iterator[None]:
    """A thread that computes, one that waits, and names that no form allows as they are."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=count_up, args=(stop,), name="counter;of numbers_12"),
        threading.Thread(target=stop.wait, name="sleeper"),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving(scripted_llm("ok"), debug_endpoints=True) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_lines_for_flame_graphs(http: httpx.Client) -> None:
    with at_work():
        answer = http.get(PROFILE, params={"seconds": 0.5})
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [re.fullmatch(r"([^ ]+) (\d+)", line) for line in answer.text.splitlines()]
    stacks = {found[1]: int(found[2]) for found in lines if found is not None}
    assert len(stacks) == len(lines) > 3
    of_thread: dict[str, int] = {}
    for stack, milliseconds in stacks.items():
        name = stack.split(";")[0]
        of_thread[name] = of_thread.get(name, 0) + milliseconds
    assert of_thread["sleeper"] == pytest.approx(of_thread["counter,of_numbers"], abs=20), "each is in every sample"
    assert of_thread["sleeper"] >= 450
    counting = [stack for stack in stacks if stack.startswith("counter,of_numbers;threading:Thread._bootstrap;")]
    assert counting
    assert any(stack.split(";")[-1].endswith("test_profile:count_up") for stack in counting)
    assert all(stack.endswith(";[waiting]") for stack in stacks if stack.startswith("sleeper;"))
    assert any(stack.endswith("ternvl.engine.loop:Loop._take_order;[waiting]") for stack in stacks)
    assert not any(stack.startswith("profiler") for stack in stacks), "the sampler leaves itself out"


def test_a_file_for_speedscope(http: httpx.Client) -> None:
    with at_work():
        told: dict[str, Any] = http.get(PROFILE, params={"seconds": 0.3, "format": "speedscope"}).json()
    assert told["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames, profiles = told["shared"]["frames"], {each["name"]: each for each in told["profiles"]}
    for each in profiles.values():
        assert (each["type"], each["unit"], each["startValue"]) == ("sampled", "seconds", 0)
        assert len(each["samples"]) == len(each["weights"])
        assert sum(each["weights"]) == pytest.approx(each["endValue"], abs=1e-4)
        assert all(0 <= number < len(frames) for stack in each["samples"] for number in stack)
    stacks = [[frames[number] for number in stack] for stack in profiles["counter;of numbers"]["samples"]]
    (frame,) = {frame["line"]: frame for stack in stacks for frame in stack if "count_up" in frame["name"]}.values()
    assert frame["line"] == count_up.__code__.co_firstlineno
    assert profiles["sleeper"]["endValue"] == pytest.approx(0.3, abs=0.1)
    assert [frames[stack[-1]]["name"] for stack in profiles["sleeper"]["samples"]] == ["[waiting]"]


def test_one_at_a_time_beside_other_requests_and_not_for_nobody(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, sample = threading.Event(), profiler.sample
    monkeypatch.setattr(profiler, "sample", lambda *given: (began.set(), sample(*given))[1])
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=http.base_url, timeout=0.5) as impatient:
        first = pool.submit(impatient.get, PROFILE, params={"seconds": 60})
        assert began.wait(60)
        assert http.get("/health").status_code == 200
        refused = http.get(PROFILE, params={"seconds": 0.1})
        assert isinstance(first.exception(), httpx.ReadTimeout)
    assert (refused.status_code, error_of(refused)["code"]) == (409, "profile_running")
    eventually(lambda: http.get(PROFILE, params={"seconds": 0.1}).status_code == 200)


@pytest.mark.parametrize("given", ["0", "0.09", "61", "nan", "inf", "-1", "soon", ""])
def test_seconds_that_are_none(http: httpx.Client, given: str) -> None:
    answer = http.get(PROFILE, params={"seconds": given})
    assert answer.status_code == 400
    expected = f"seconds is {given!r}, but must be a number from 0.1 to 60."
    assert (error_of(answer)["message"], error_of(answer)["param"]) == (expected, "seconds")


def test_a_form_that_is_none(http: httpx.Client) -> None:
    message = error_of(http.get(PROFILE, params={"format": "svg"}))["message"]
    assert message == "format is 'svg', but must be collapsed or speedscope."
