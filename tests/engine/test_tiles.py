"""Equal tiles: encoded once wherever they stand, one copy of their features, answers that do not show it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from ternvl.engine.cache.block_keys import own_images
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.types import ImageSpan, Prompt
from tests.engine.tiny import CONFIG, CONTEXT_ID, expected, make_engine, make_model, run
from tests.lora.tiny import pool_of, write

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
SIZE = CONFIG.tokens_per_tile


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model()


@cache
def tile(name: str) -> torch.Tensor:
    side = CONFIG.tile_size
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(ord(name)))


def tiled(*images: str, before: str = "abcd", after: str = "xyz") -> Prompt:
    """Text, then images, each with a letter for each of its tiles, and text after them."""
    ids, spans, pixels = [8 + ord(each) % 50 for each in before], list[ImageSpan](), list[torch.Tensor]()
    for image in images:
        digests = tuple(each.encode() * 32 for each in image)
        digest = image.encode().ljust(32, b".")
        spans.append(ImageSpan(len(ids), len(image) * SIZE, len(pixels), len(image), digest, digests))
        ids += [CONTEXT_ID] * (len(image) * SIZE) + [9]
        pixels += [tile(each) for each in image]
    return Prompt((*ids, *(8 + ord(each) % 50 for each in after)), tuple(spans), torch.cat(pixels))


def encoded(engine: Engine, *prompts: Prompt, salts: Sequence[str] = ()) -> int:
    """The tiles that were encoded for prompts of one batch, whose answers are checked."""
    before = engine.stats().num_encoded_tiles
    salts = salts or [""] * len(prompts)
    requests = [
        Request(f"r{i}", *each) for i, each in enumerate(zip(prompts, [GREEDY] * 9, [0] * 9, salts, strict=False))
    ]
    answers = run(engine, requests)
    assert answers == {request.id: expected(engine.model, request) for request in requests}
    return engine.stats().num_encoded_tiles - before


def test_equal_tiles_of_an_image_are_encoded_once(model: InternVL) -> None:
    engine = make_engine(model)
    assert encoded(engine, tiled("aabab")) == 2
    stats = engine.stats()
    assert (stats.num_tile_lookups, stats.num_tile_hits) == (5, 3)
    assert (stats.num_image_lookups, stats.num_image_hits) == (1, 0)
    assert len(engine.runner.tiles) == 2, "one copy of their features"


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_equal_tiles_of_a_batch_are_encoded_once(model: InternVL, tiles: int) -> None:
    engine = make_engine(model, max_num_batched_tiles=tiles, enable_prefix_caching=False)
    assert encoded(engine, tiled("ab", "bc"), tiled("cab", before="q"), tiled("bd", before="rs")) == 4
    assert engine.stats().num_held_images == 0


def test_the_next_screenshot_costs_the_tiles_that_changed(model: InternVL) -> None:
    engine = make_engine(model)
    assert encoded(engine, tiled("abcdT")) == 5
    assert encoded(engine, tiled("abxdU")) == 2
    assert encoded(engine, tiled("abxdU"), tiled("abcdT", before="other")) == 0
    assert len(engine.runner.tiles) == 7


def test_the_budget_is_for_tiles_that_must_be_encoded(model: InternVL) -> None:
    engine = make_engine(model, max_num_batched_tiles=2, max_num_batched_tokens=200)
    encoded(engine, tiled("c"))
    engine.add(Request("all", tiled("acaaacb", before="q"), GREEDY))
    assert engine.backlog(has_images=True).num_tiles == 2
    assert engine.step(), "both tiles that are missing are encoded in the first step, so a token is drawn"
    assert engine.stats().num_encoded_tiles == 3
    assert engine.backlog(has_images=True).num_tiles == 0


def test_tiles_before_what_is_computed_already_are_not_needed(model: InternVL) -> None:
    engine = make_engine(model, image_cache_memory=0)
    assert encoded(engine, tiled("abcd")) == 4
    assert encoded(engine, tiled("abce")) == 1, "the blocks of the first three are in the prefix cache"


def test_blocks_are_shared_up_to_the_first_tile_that_differs(model: InternVL) -> None:
    engine = make_engine(model)
    counts = []
    for prompt in (tiled("abcd"), tiled("abxd"), tiled("ab"), tiled("xbcd")):
        engine.add(Request("r", prompt, GREEDY))
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        counts.append(outputs[0].num_cached_tokens)
        assert [i for each in outputs for i in each.token_ids] == expected(
            model, Request("r", prompt, GREEDY)
        ).token_ids
    assert counts == [0, 4 + 2 * SIZE, 4 + 2 * SIZE, 4]


def test_salts_keep_tiles_apart(model: InternVL) -> None:
    engine = make_engine(model)
    assert encoded(engine, tiled("ab"), tiled("ab"), tiled("ab"), salts=["one", "two", ""]) == 6
    assert encoded(engine, tiled("ba"), tiled("ba"), salts=["one", "two"]) == 0
    assert encoded(engine, tiled("ba"), salts=["three"]) == 2


def test_an_adapter_names_its_tiles_if_it_changes_how_they_are_encoded(tmp_path: Path) -> None:
    pool, prompt = pool_of(CONFIG), tiled("ab")
    seeing = pool.read("seeing", write(tmp_path / "seeing", CONFIG, 0, ("vision_model.", "language_model.")))
    talking = pool.read("talking", write(tmp_path / "talking", CONFIG, 1, ("language_model.",)))
    assert (seeing.touches_images, talking.touches_images) == (True, False)
    keys = {name: own_images(prompt, adapter, "")[0].tile_keys for name, adapter in (("s", seeing), ("t", talking))}
    assert keys["t"] == prompt.images[0].tile_keys
    assert not set(keys["s"]) & set(keys["t"])
    assert not set(own_images(prompt, seeing, "salt")[0].tile_keys) & set(keys["s"])


def test_a_prompt_without_digests_of_tiles_shares_by_image(model: InternVL) -> None:
    engine, prompt = make_engine(model, enable_prefix_caching=False), tiled("aba")
    without = replace(prompt, images=tuple(replace(image, tile_digests=()) for image in prompt.images))
    assert len(set(without.images[0].tile_keys)) == 3
    assert encoded(engine, without) == 3
    assert encoded(engine, without) == 0


@pytest.mark.parametrize("memory", [0, 1, 3, 100])
@pytest.mark.parametrize("options", [{}, {"num_blocks": 30, "max_model_len": 100}, {"enable_prefix_caching": False}])
def test_answers_are_the_same_whatever_is_shared_evicted_preempted_or_aborted(
    model: InternVL, memory: int, options: dict[str, int]
) -> None:
    rng = random.Random(memory)
    engine = make_engine(model, image_cache_memory=memory * SIZE * 32 * 4, max_num_batched_tokens=24, **options)
    requests = []
    for number in range(24):
        images = ["".join(rng.choices("abcde", k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 3))]
        prompt = tiled(*images, before="".join(rng.choices("klmn", k=rng.randrange(1, 4))))
        params = SamplingParams(temperature=rng.choice([0, 1.2]), seed=number, max_tokens=12, ignore_eos=True)
        requests.append(Request(str(number), prompt, params, cache_salt=rng.choice(["", "", "s"])))
    for request in requests:
        engine.add(request)
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    aborted = {str(number) for number in range(0, 24, 5)}
    for step in range(5000):
        if not engine.has_work:
            break
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
        engine.check_integrity()
        if step % 3 == 2 and aborted:
            engine.abort(aborted.pop())
            engine.check_integrity()
    assert not engine.has_work
    whole = [request for request in requests if int(request.id) % 5]
    assert {each.id: tokens[each.id] for each in whole} == {
        each.id: expected(model, each, engine.config.max_model_len).token_ids for each in whole
    }
    stats = engine.stats()
    assert stats.num_held_images == 0
    assert len(engine.runner.tiles) <= memory


def test_batches_give_the_same_bits(model: InternVL) -> None:
    """One tile at a time, and all in one call with others: exact log probabilities of the first token."""
    params = replace(GREEDY, logprobs=3)
    found = []
    for tiles in (1, 3, 16):
        engine = make_engine(model, max_num_batched_tiles=tiles, enable_prefix_caching=False)
        others = [Request(f"o{i}", tiled(name, before="pq"), params) for i, name in enumerate(("bca", "dd", "e"))]
        found.append(run(engine, [*others, Request("r", tiled("abca"), params)])["r"].token_ids)
    assert found[0] == found[1] == found[2]
