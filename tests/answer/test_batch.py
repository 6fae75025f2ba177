"""Many choices through one service: queues that others fill, errors, adapters that do not fit together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ternvl.answer.ask import Ask, PreparedAsk, prepare
from ternvl.answer.batch import AskBatch
from ternvl.answer.completion import RequestOutput
from ternvl.engine.request import Request
from ternvl.errors import EngineError, OverloadedError, RequestError, TernvlError
from ternvl.llm import LLM
from ternvl.params import SamplingParams
from ternvl.types import Prompt
from tests.server.fakes import tiny_llm
from tests.server.lora import make_llm, write_adapter
from tests.waiting import eventually

SHORT = SamplingParams(temperature=1.5, seed=7, max_tokens=6, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


def prepared(llm: LLM, text: str, params: SamplingParams = SHORT, adapter: str | None = None) -> PreparedAsk:
    ask = Ask(input=text, params=params, adapter=adapter)
    return prepare(ask, llm.builder, llm.grammars, max_model_len=llm.engine.config.max_model_len)


def run(llm: LLM, asks: Sequence[PreparedAsk], ended: list[None] | None = None) -> list[RequestOutput]:
    llm.service.start()
    batch = AskBatch(llm.service, llm.adapters, llm.tokenizer)
    names = (f"batch-{number}" for number in count())
    return batch.run(asks, names, ended=lambda: ended.append(None) if ended is not None else None)


def tokens(outputs: Sequence[RequestOutput]) -> list[list[tuple[int, ...]]]:
    return [[choice.token_ids for choice in output.outputs] for output in outputs]


def assert_is_free(llm: LLM) -> None:
    stats = llm.engine.stats()
    assert not llm.engine.has_work
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
    assert {entry.num_users for entry in llm.adapters.entries} <= {0}


def fill(llm: LLM, *names: str) -> list[threading.Thread]:
    """Start threads with a request each, of which one runs and the others wait in the queue."""

    def ask(name: str) -> None:
        list(llm.service.outputs(Request(name, Prompt((9,)), LONG)))

    def is_queued(thread: threading.Thread, num_waiting: int) -> bool:
        stats = llm.engine.stats()
        return (stats.num_running, stats.num_waiting) == (1, num_waiting) or not thread.is_alive()

    llm.service.start()
    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for num_before, thread in enumerate(threads):
        thread.start()
        eventually(partial(is_queued, thread, num_before))
    return threads


def test_outputs_are_in_the_order_of_the_asks_and_each_end_is_told() -> None:
    llm = tiny_llm(max_num_seqs=2, max_queue=3)
    params = [SamplingParams(temperature=1.5, seed=7, max_tokens=m, n=n, ignore_eos=True) for m, n in [(9, 3), (1, 4)]]
    asks = [prepared(llm, text, each) for text, each in zip("ab", params, strict=True)]
    ended: list[None] = []
    outputs = run(llm, asks, ended)
    assert [output.prompt for output in outputs] == [ask.prompt for ask in asks]
    assert [[choice.index for choice in output.outputs] for output in outputs] == [[0, 1, 2], [0, 1, 2, 3]]
    assert [[len(ids) for ids in each] for each in tokens(outputs)] == [[9] * 3, [1] * 4]
    assert len(ended) == 7
    assert run(llm, []) == []
    assert_is_free(llm)


@pytest.mark.parametrize("sees_it", [True, False], ids=["seen at once", "seen by the engine"])
def test_more_choices_than_the_queue_holds_while_other_threads_fill_it(
    sees_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = tiny_llm(max_num_seqs=1, max_queue=2)
    asks = [prepared(llm, text, replace(SHORT, n=2)) for text in "abcd"]
    alone = tokens(run(llm, asks))
    others = fill(llm, "one", "two", "three")
    if not sees_it:
        monkeypatch.setattr(llm.service, "check_room", lambda num_requests, **_: None)
    ended: list[None] = []
    assert tokens(run(llm, asks, ended)) == alone
    assert len(ended) == 8
    for other in others:
        other.join()
    assert_is_free(llm)


def test_two_batches_at_once_through_one_short_queue() -> None:
    llm = tiny_llm(max_num_seqs=2, max_queue=2)
    asks = [[prepared(llm, text, replace(SHORT, n=3)) for text in texts] for texts in ("abcde", "fghij")]
    alone = [tokens(run(llm, each)) for each in asks]
    together: dict[int, list[list[tuple[int, ...]]]] = {}

    def answer(number: int) -> None:
        batch = AskBatch(llm.service, llm.adapters, llm.tokenizer)
        together[number] = tokens(batch.run(asks[number], (f"batch-{number}-{each}" for each in count())))

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(2)] == alone
    assert_is_free(llm)


def refused(llm: LLM) -> tuple[list[PreparedAsk], type[TernvlError]]:
    """A token that the vocabulary lacks: only the engine looks at it, once it gets the request."""
    return [prepared(llm, "c", replace(SHORT, stop_token_ids=(10**6,)))], RequestError


def failing(llm: LLM) -> tuple[list[PreparedAsk], type[TernvlError]]:
    """A prompt that breaks the model."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the model is broken")

    step = llm.engine.step
    num_steps = iter(range(1000))
    llm.engine.step = lambda: fail() if next(num_steps) == 5 else step()  # type: ignore[method-assign]
    return [], EngineError


@pytest.mark.parametrize("broken", [refused, failing])
def test_an_error_of_one_choice_leaves_nothing_behind(
    broken: Callable[[LLM], tuple[list[PreparedAsk], type[TernvlError]]], tmp_path: Path
) -> None:
    llm = make_llm(max_num_seqs=3, max_queue=8)
    llm.load_adapter("one", write_adapter(tmp_path, 1))
    good = prepared(llm, "a")
    alone = tokens(run(llm, [good]))
    bad, error = broken(llm)
    asks = [prepared(llm, "a", replace(LONG, n=2), "one"), prepared(llm, "b", replace(LONG, n=2)), *bad]
    ended: list[None] = []
    with pytest.raises(error):
        run(llm, asks, ended)
    assert ended == []
    assert_is_free(llm)
    assert tokens(run(llm, [good])) == alone


@pytest.fixture
def adapted(tmp_path: Path) -> LLM:
    """A model with three adapters, of which one fits into memory."""
    llm = make_llm(max_loras=1)
    for seed, name in enumerate(("one", "two", "three")):
        llm.load_adapter(name, write_adapter(tmp_path / name, seed))
    return llm


def test_adapters_that_do_not_fit_into_memory_together_wait_for_each_other(adapted: LLM) -> None:
    names = ["one", None, "two", "three", "one", None, "three", "two"]
    asks = [prepared(adapted, "a", replace(SHORT, temperature=0, n=2), name) for name in names]
    alone = [tokens(run(adapted, [ask]))[0] for ask in asks]
    assert len({each[0] for each in alone}) == 4
    assert tokens(run(adapted, asks)) == alone
    assert adapted.adapters.num_resident == 1
    assert_is_free(adapted)


def test_an_adapter_that_others_keep_out_of_memory_is_refused(adapted: LLM) -> None:
    asks = [prepared(adapted, "a", LONG), prepared(adapted, "a", SHORT, "two")]
    with adapted.adapters.use("one"):
        with pytest.raises(OverloadedError, match="--max-loras"):
            run(adapted, asks)
        assert not adapted.engine.has_work
    assert_is_free(adapted)
    assert [len(each[0]) for each in tokens(run(adapted, asks))] == [400, 6]
