"""What is computed once: prompts that begin alike, images, and the prompt of several answers."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ternvl.engine.cache.tiles import TileCache, TileUse
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.types import ImageSpan, Prompt
from tests.engine.tiny import CONTEXT_ID, expected, image_prompt, make_engine, make_model, run, text_prompt

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model()


def cached_tokens(engine: Engine, request: Request) -> int:
    """How many tokens of a request's prompt were there; its answer is checked."""
    engine.add(request)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        engine.check_integrity()
    assert [i for output in outputs for i in output.token_ids] == expected(engine.model, request).token_ids
    counts = {output.num_cached_tokens for output in outputs}
    assert len(counts) == 1
    return counts.pop()


def test_a_prompt_is_computed_once(model: InternVL) -> None:
    engine = make_engine(model)
    prompt = text_prompt(random.Random(0), 18)
    assert cached_tokens(engine, Request("a", prompt, GREEDY)) == 0
    assert cached_tokens(engine, Request("b", prompt, GREEDY)) == 16
    longer = Prompt(prompt.token_ids + text_prompt(random.Random(1), 9).token_ids)
    assert cached_tokens(engine, Request("c", longer, GREEDY)) == 16
    assert cached_tokens(engine, Request("d", Prompt(prompt.token_ids[:12]), GREEDY)) == 8  # the last token is computed
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_prefix_hit_tokens) == (18 + 18 + 27 + 12, 16 + 16 + 8)


def test_the_answer_is_part_of_the_next_turns_prefix(model: InternVL) -> None:
    engine = make_engine(model)
    prompt = text_prompt(random.Random(2), 10)
    answer = run(engine, [Request("a", prompt, GREEDY)])["a"].token_ids
    turn = Prompt((*prompt.token_ids, *answer, *text_prompt(random.Random(3), 5).token_ids))
    assert cached_tokens(engine, Request("b", turn, GREEDY)) == 12  # of 15 computed tokens, in full blocks


def test_salts_keep_tenants_apart(model: InternVL) -> None:
    engine = make_engine(model)
    prompt = text_prompt(random.Random(4), 18)
    assert cached_tokens(engine, Request("a", prompt, GREEDY, cache_salt="one")) == 0
    assert cached_tokens(engine, Request("b", prompt, GREEDY, cache_salt="two")) == 0
    assert cached_tokens(engine, Request("c", prompt, GREEDY)) == 0
    assert cached_tokens(engine, Request("d", prompt, GREEDY, cache_salt="one")) == 16


def test_salts_keep_images_apart(model: InternVL) -> None:
    engine = make_engine(model)
    prompt = image_prompt(random.Random(11), (2,))
    encoded = []
    for name, salt in (("a", "one"), ("b", "two"), ("c", ""), ("d", "one"), ("e", "two"), ("f", "")):
        cached_tokens(engine, Request(name, prompt, GREEDY, cache_salt=salt))
        encoded.append(engine.stats().num_encoded_tiles)
    assert encoded == [2, 4, 6, 6, 6, 6]
    assert engine.stats().num_image_hits == 0, "the prefix cache spares the second question from the image cache"
    other = replace(prompt, token_ids=(*text_prompt(random.Random(12), 3).token_ids, *prompt.token_ids[3:]))
    cached_tokens(engine, Request("g", other, GREEDY, cache_salt="one"))
    assert (engine.stats().num_encoded_tiles, engine.stats().num_image_hits) == (6, 1)


def test_off_means_off(model: InternVL) -> None:
    engine = make_engine(model, enable_prefix_caching=False)
    prompt = text_prompt(random.Random(5), 18)
    assert [cached_tokens(engine, Request(name, prompt, GREEDY)) for name in "ab"] == [0, 0]


def test_what_is_needed_replaces_what_was_cached(model: InternVL) -> None:
    engine = make_engine(model, num_blocks=10, max_num_seqs=2)
    prompts = [text_prompt(random.Random(seed), 18) for seed in range(6)]
    for number, prompt in enumerate(prompts):
        assert cached_tokens(engine, Request(f"first {number}", prompt, GREEDY)) == 0
    assert cached_tokens(engine, Request("last again", prompts[-1], GREEDY)) == 16
    assert cached_tokens(engine, Request("first again", prompts[0], GREEDY)) == 0


def test_images_are_told_apart_and_computed_once(model: InternVL) -> None:
    engine = make_engine(model)
    first, other = image_prompt(random.Random(6), (2,)), image_prompt(random.Random(7), (2,))
    other = replace(other, token_ids=first.token_ids)
    assert first.images[0].start == 3
    assert cached_tokens(engine, Request("a", first, GREEDY)) == 0
    assert cached_tokens(engine, Request("b", first, GREEDY)) == 12
    assert engine.stats().num_encoded_tiles == 2
    assert cached_tokens(engine, Request("c", other, GREEDY)) == 0  # another image begins within the first block
    assert engine.stats().num_encoded_tiles == 4
    assert run(engine, [Request("d", first, GREEDY)]) != run(engine, [Request("d", other, GREEDY)])


def test_all_who_wait_for_an_image_know_when_it_was_encoded(model: InternVL) -> None:
    engine = make_engine(model, max_num_batched_tiles=1)
    shared, plain = image_prompt(random.Random(5), [3]), text_prompt(random.Random(6), 4)
    for name, prompt in (("a", shared), ("b", shared), ("c", plain)):
        engine.add(Request(name, prompt, replace(GREEDY, max_tokens=1)))
    outputs = {}
    while engine.has_work:
        outputs |= {output.request_id: output.first_token for output in engine.step()}
    one, two, none = (outputs[name] for name in "abc")
    assert one is not None
    assert two is not None
    assert none is not None
    assert one.encoding is not None
    assert one.started <= one.encoding[0] < one.encoding[1] <= one.drawn
    assert one.encoding == two.encoding
    assert none.encoding is None
    engine.add(Request("d", shared, replace(GREEDY, max_tokens=1)))
    (output,) = engine.step()
    assert output.first_token is not None
    assert output.first_token.encoding is None, "it is cached"


def test_an_image_in_flight_is_encoded_once(model: InternVL) -> None:
    engine = make_engine(model, max_num_batched_tiles=1)
    rng = random.Random(8)
    image = image_prompt(rng, (3,), gap=4)
    requests = [Request("first", image, GREEDY)]
    for number in range(3):  # the same image after other words, one of them twice in one prompt
        ids = text_prompt(rng, 4).token_ids + image.token_ids[4:]
        requests.append(Request(f"r{number}", replace(image, token_ids=ids), GREEDY))
    twice = Prompt(
        image.token_ids + image.token_ids[4:],
        (image.images[0], replace(image.images[0], start=image.num_tokens, first_tile=3)),
        image.pixel_values.repeat(2, 1, 1, 1) if image.pixel_values is not None else None,
    )
    assert [twice.token_ids[i] for i in (image.num_tokens, image.num_tokens + 11)] == [CONTEXT_ID] * 2
    requests.append(Request("twice", twice, GREEDY))
    answers = run(engine, requests)
    assert answers == {request.id: expected(model, request) for request in requests}
    stats = engine.stats()
    assert (stats.num_encoded_tiles, stats.num_image_lookups, stats.num_image_hits) == (3, 6, 5)
    assert stats.num_held_images == 0


@pytest.mark.parametrize(("kept", "encoded"), [(0, 4), (1, 3), (2, 2)])
def test_images_are_kept_within_their_memory(model: InternVL, kept: int, encoded: int) -> None:
    tile_bytes = 4 * 32 * 4
    engine = make_engine(model, image_cache_memory=kept * tile_bytes, enable_prefix_caching=False)
    first, second = (image_prompt(random.Random(seed), (1,)) for seed in (9, 10))
    for number, prompt in enumerate([first, second, second, first]):
        assert cached_tokens(engine, Request(str(number), prompt, GREEDY)) == 0
        assert len(engine.runner.tiles) <= kept
    assert engine.stats().num_encoded_tiles == encoded


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 18])
def test_answers_to_one_prompt_share_its_blocks(model: InternVL, num_tokens: int, caching: bool) -> None:
    engine = make_engine(model, enable_prefix_caching=caching)
    prompt = text_prompt(random.Random(11), num_tokens)
    params = [SamplingParams(temperature=1.3, seed=seed, max_tokens=6, ignore_eos=True) for seed in range(4)]
    requests = [Request(f"r{i}", prompt, each, sibling_of="r0" if i else None) for i, each in enumerate(params)]
    for request in requests:
        engine.add(request)
    engine.step()
    engine.step()
    engine.check_integrity()
    tables = [sequence.block_table for sequence in engine.scheduler.running]
    assert len(tables) == 4
    num_shared = (num_tokens - 1) // 4
    assert len({tuple(table[:num_shared]) for table in tables}) == 1
    own = [block for table in tables for block in table[num_shared:]]
    assert len(own) == len(set(own))
    assert engine.stats().num_prefill_tokens == num_tokens + 3  # each answer computes the last token itself
    assert engine.stats().num_prefix_hit_tokens == 0


def test_siblings_survive_their_firsts_end_and_preemption(model: InternVL) -> None:
    prompt = image_prompt(random.Random(12), (2,))
    for num_blocks, first_tokens in [(200, 1), (20, 30), (14, 12)]:
        params = [
            SamplingParams(temperature=1.1, seed=i, max_tokens=first_tokens if i == 0 else 24, ignore_eos=True)
            for i in range(4)
        ]
        requests = [Request(f"r{i}", prompt, each, sibling_of="r0" if i else None) for i, each in enumerate(params)]
        engine = make_engine(model, num_blocks=num_blocks)
        answers = run(engine, requests)
        limit = engine.config.max_model_len
        assert answers == {request.id: expected(model, request, limit) for request in requests}


def test_a_sibling_of_nobody_is_a_request_like_any_other(model: InternVL) -> None:
    request = Request("a", text_prompt(random.Random(13), 9), GREEDY, sibling_of="gone")
    assert run(make_engine(model), [request])["a"] == expected(model, request)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns after a few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_another_thread_may_ask_how_many_images_are_held() -> None:
    cache = TileCache(max_bytes=0, tile_bytes=1)
    uses = [TileUse(ImageSpan(0, 1, 0, 1, bytes([i]))) for i in range(64)]
    done = threading.Event()

    def come_and_go() -> None:
        for _ in range(300):
            for use in uses:
                cache.acquire(use)
            for use in uses:
                cache.release(use)
        done.set()

    worker = threading.Thread(target=come_and_go)
    worker.start()
    counts = set()
    while not done.is_set():
        counts.add(cache.num_held_images)
    worker.join()
    assert counts <= set(range(65))
    assert cache.num_held_images == 0
    cache.check_integrity([])
