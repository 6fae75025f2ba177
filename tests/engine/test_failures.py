"""What the engine refuses, what it drops, and that it serves on."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch

from ternvl.config import EngineConfig
from ternvl.engine.engine import Engine
from ternvl.engine.reference import ReferenceEngine
from ternvl.engine.request import Request
from ternvl.errors import ConfigError, ContextLengthError, EngineError, OverloadedError, RequestError, UnavailableError
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.types import Prompt
from tests.engine.tiny import (
    CONFIG,
    STOP_IDS,
    VOCAB_SIZE,
    expected,
    image_prompt,
    make_engine,
    make_model,
    mixed_requests,
    run,
    text_prompt,
)

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
GREEDY_4 = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model()


def test_full_queue_refuses_and_serves_on(model: InternVL) -> None:
    engine = make_engine(model, max_queue=2)
    requests = [Request(f"r{i}", text_prompt(random.Random(i), 5), GREEDY) for i in range(3)]
    engine.add(requests[0])
    engine.add(requests[1])
    assert engine.is_full
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        engine.add(requests[2])
    answers = run(engine, [])
    assert set(answers) == {"r0", "r1"}
    assert run(engine, [requests[2]])["r2"] == expected(model, requests[2])


IMAGE = image_prompt(random.Random(0), (2,))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(()), "empty"),
        (Prompt((1, VOCAB_SIZE)), f"token {VOCAB_SIZE}"),
        (Prompt((1, -1)), "token -1"),
        (Prompt(IMAGE.token_ids, IMAGE.images), "2 tiles, but pixel_values holds 0"),
        (Prompt(IMAGE.token_ids, (), IMAGE.pixel_values), "0 tiles, but pixel_values holds 2"),
        (Prompt(IMAGE.token_ids, IMAGE.images, torch.zeros(2, 3, 8, 8)), "shape"),
        (Prompt(IMAGE.token_ids[:6], IMAGE.images, IMAGE.pixel_values), "Image 1"),
    ],
)
def test_prompts_that_cannot_be(model: InternVL, prompt: Prompt, message: str) -> None:
    engine = make_engine(model)
    with pytest.raises(RequestError, match=message):
        engine.add(Request("a", prompt, GREEDY))
    assert not engine.has_work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0, but must be at least 1"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is 0, but must be at least 1"),
        ({"max_num_batched_tiles": 0}, "max_num_batched_tiles is 0, but must be at least 1"),
        ({"max_queue": 0}, "max_queue is 0, but must be at least 1"),
        ({"block_size": 0}, "block_size is 0, but must be at least 1"),
        ({"kv_cache_memory": 0}, "kv_cache_memory is 0, but must be at least 1"),
        ({"kv_cache_memory": "1G"}, "kv_cache_memory is '1G', but must be a whole number"),
        ({"image_cache_memory": -1}, "image_cache_memory is -1, but must be at least 0"),
        ({"enable_prefix_caching": 1}, "enable_prefix_caching is 1, but must be True or False"),
        (
            {"max_num_batched_tokens": 15, "max_num_seqs": 2},
            "max_num_batched_tokens is 15, but must be at least block_size, which is 16: "
            "raise --max-num-batched-tokens or lower --block-size",
        ),
        (
            {"max_num_batched_tokens": 20, "max_num_seqs": 21},
            "max_num_batched_tokens is 20, but must be at least max_num_seqs, which is 21: "
            "raise --max-num-batched-tokens or lower --max-num-seqs",
        ),
        (
            {"kv_cache_memory": 100_000, "max_model_len": 500},
            "kv_cache_memory is 100000 bytes and holds 384 tokens, but max_model_len is 500, which takes 131072 bytes: "
            "raise --kv-cache-memory or lower --max-model-len",
        ),
    ],
)
def test_settings_that_cannot_be(model: InternVL, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Engine(model, EngineConfig(**options), stop_ids=STOP_IDS)


def test_a_context_beyond_memory_is_refused(model: InternVL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ternvl.engine.settings.free_memory", lambda _: 100_000)
    with pytest.raises(ConfigError, match="512 tokens takes 131072 bytes of KV cache, but only 100000 bytes are free"):
        Engine(model, EngineConfig(), stop_ids=STOP_IDS)
    assert Engine(model, EngineConfig(max_model_len=300), stop_ids=STOP_IDS).kv_cache_tokens == 304


def test_a_context_beyond_the_models_is_cut_with_a_warning(model: InternVL, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(model, EngineConfig(max_model_len=513), stop_ids=STOP_IDS)
    assert engine.config.max_model_len == 512
    assert "max_model_len is 513, but the model supports only 512 positions" in caplog.text


def test_abort_frees_at_once(model: InternVL) -> None:
    engine = make_engine(model)
    requests = mixed_requests(seed=11, count=6)
    for request in requests:
        engine.add(request)
    engine.step()
    for request in requests:
        engine.abort(request.id)
        engine.check_integrity()
    engine.abort("unknown")
    assert not engine.has_work
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


class Faulty(InternVL):
    """Fails, or gives broken logits for the first row, on demand."""

    fails = False
    breaks = False

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("out of memory")
        logits = super().logits(hidden)
        if self.breaks and len(logits):
            logits[0] = torch.nan
        return logits


def faulty_model() -> Faulty:
    model = Faulty(CONFIG)
    model.load_state_dict(make_model().state_dict())
    return model.eval()


def test_failure_drops_the_step_and_the_engine_serves_on() -> None:
    model = faulty_model()
    engine = make_engine(model, max_num_seqs=2)
    requests = [Request(f"r{i}", text_prompt(random.Random(i), 5), GREEDY) for i in range(3)]
    for request in requests:
        engine.add(request)
    engine.step()
    model.fails = True
    with pytest.raises(EngineError) as caught:
        engine.step()
    assert set(caught.value.request_ids) == {"r0", "r1"}
    assert isinstance(caught.value.cause, UnavailableError)  # the requests are refused, and may be sent again
    assert str(caught.value) == "The engine had too little memory for this request."
    engine.check_integrity()
    model.fails = False
    answers = run(engine, [])
    assert answers == {"r2": expected(model, requests[2])}


def test_broken_logits_concern_their_own_request_alone() -> None:
    model = faulty_model()
    engine = make_engine(model)
    requests = [Request(f"r{i}", text_prompt(random.Random(i), 5), GREEDY) for i in range(3)]
    for request in requests:
        engine.add(request)
    model.breaks = True
    with pytest.raises(EngineError) as caught:
        engine.step()
    assert caught.value.request_ids == ("r0",)
    model.breaks = False
    assert run(engine, []) == {request.id: expected(model, request) for request in requests[1:]}


def test_what_a_failed_step_overwrote_is_not_found_again() -> None:
    model = faulty_model()
    engine = make_engine(model, num_blocks=7)
    first, second = (Request(f"r{i}", text_prompt(random.Random(i), 20), GREEDY_4) for i in range(2))
    right = expected(model, first)
    assert run(engine, [first])["r0"] == right
    model.fails = True
    engine.add(second)
    with pytest.raises(EngineError):
        engine.step()
    engine.check_integrity()
    model.fails = False
    assert run(engine, [first])["r0"] == right


def test_who_was_to_give_blocks_up_when_a_step_failed_computes_them_again() -> None:
    model = faulty_model()
    engine = make_engine(model, num_blocks=4, enable_prefix_caching=False)
    old, young = (Request(f"r{i}", text_prompt(random.Random(i), 8), GREEDY) for i in range(2))
    right = expected(model, young, 16)
    answer: list[int] = []
    for request in (old, young):
        engine.add(request)
    while not engine.scheduler.schedule().preempted:
        answer += [i for output in engine.step() if output.request_id == "r1" for i in output.token_ids]
    model.breaks = True
    with pytest.raises(EngineError) as caught:
        engine.step()
    assert caught.value.request_ids == ("r0",)
    engine.check_integrity()
    model.breaks = False
    assert answer + run(engine, [])["r1"].token_ids == right.token_ids


def test_reference_engine_refuses_and_fails_like_the_engine() -> None:
    model = faulty_model()
    engine = ReferenceEngine(model, EngineConfig(max_model_len=20, max_queue=1), stop_ids=STOP_IDS)
    requests = [Request(f"r{i}", text_prompt(random.Random(i), 5), GREEDY) for i in range(3)]
    engine.add(requests[0])
    engine.add(requests[1])
    with pytest.raises(OverloadedError, match="1 requests are waiting"):
        engine.add(requests[2])
    with pytest.raises(ContextLengthError):
        engine.add(Request("long", text_prompt(random.Random(0), 21), GREEDY))
    model.fails = True
    with pytest.raises(EngineError) as caught:
        engine.step()
    assert caught.value.request_ids == ("r0",)
    model.fails = False
    outputs = [engine.step()[0] for _ in range(12)]
    assert [output.token_ids[0] for output in outputs] == expected(model, requests[1]).token_ids
    assert not engine.has_work
