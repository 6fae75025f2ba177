"""The embedded model with the kernels that serve it: the same bits in any company, and no image for another."""

from __future__ import annotations

import random

import pytest

from benchmarks.invariance import alone, differing, engine_of, requests_of, together
from ternvl import LLM, SamplingParams
from ternvl.kernels.loader import available
from training.scenes import COLORS, draw, random_scene


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


@pytest.mark.skipif(not available(), reason="plain torch is exact to the last bits only")
@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 40, "max_num_seqs": 9},
        {"max_model_len": 400, "kv_cache_memory": 400 * 4096, "max_num_seqs": 12},
    ],
    ids=["company", "preempted"],
)
def test_company_changes_no_bit(llm: LLM, options: dict[str, int]) -> None:
    requests = requests_of(llm, 24, seed=3)
    engine = engine_of(llm, **options)
    counts = differing(alone(llm, requests), together(engine, requests, seed=4))
    assert counts == {"differing_tokens": 0, "differing_logprobs": 0}
    assert engine.stats().num_prefix_hit_tokens > 0
    assert (engine.stats().num_preemptions > 0) == ("kv_cache_memory" in options)


def test_another_image_is_another_question(llm: LLM) -> None:
    """Scenes of one object of each colour in turn: the same size, the same words around them."""
    rng = random.Random(6)
    scenes = {}
    while len(scenes) < 6:
        scene = random_scene(rng, 1, size=(120, 120))
        scenes.setdefault(scene.items[0].color, scene)
    assert scenes.keys() <= COLORS.keys()
    answers = {}
    for color, scene in scenes.items():
        text = {"type": "text", "text": "What is in this image?"}
        prompt = llm.prompt([{"role": "user", "content": [{"type": "image", "image": draw(scene)}, text]}])
        first = llm.generate(prompt, SamplingParams(temperature=0))[0]
        again = llm.generate(prompt, SamplingParams(temperature=0))[0]
        assert first.text == again.text
        answers[color] = first.text
        hits = llm.engine.stats().num_prefix_hit_tokens
        llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1))
        assert llm.engine.stats().num_prefix_hit_tokens - hits == (prompt.num_tokens - 1) // 16 * 16
    right = sum(color in text for color, text in answers.items())
    assert right >= 5
    assert len(set(answers.values())) >= 5
