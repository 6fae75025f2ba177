"""Check that no answer depends on the requests that are computed with it, to the bit.

    python benchmarks/invariance.py                      # the embedded model, 200 requests
    python benchmarks/invariance.py --requests 1000 --seed 7
    python benchmarks/invariance.py --quantization int8

Mixed requests (texts, drawn scenes in one or several tiles, follow-up turns, greedy and seeded at random settings) are
answered one at a time by an engine without caches; then together, arriving at random, with prefix hits and random
chunks; then again with so little memory that sequences are preempted all the time. Tokens and the bits of their log
probabilities must be equal, and so must those of prompts, which some requests ask for. Greedy requests are also
answered by the reference path, with the same tokens unless the model is quantised, as the reference path never is. The
last line is JSON. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from ternvl import LLM
from ternvl.config import EngineConfig
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.params import SamplingParams
from ternvl.types import Prompt
from training import tasks
from training.scenes import draw, random_scene

Answers = dict[str, list[tuple[int, float]]]
"""Tokens and their log probabilities, by request, after those of its prompt if it asks for them."""


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Return a question about a scene, a copying task or small talk, sometimes with earlier turns."""
    if rng.random() < 0.5:
        turn = rng.choice((tasks.chat, tasks.copy))(rng)
        return [*_history(rng), {"role": "user", "content": turn.question}]
    scene = random_scene(rng, rng.choice((1, 2, 3, 4)), single_tile=rng.random() < 0.6)
    turn = tasks.scene_turns(rng, scene, 1)[0]
    image = {"type": "image", "image": draw(scene)}
    return [*_history(rng), {"role": "user", "content": [image, {"type": "text", "text": turn.question}]}]


def _history(rng: random.Random) -> list[dict[str, Any]]:
    turns = [tasks.chat(rng) for _ in range(rng.choice((0, 0, 0, 1, 3)))]
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (("user", turn.question), ("assistant", turn.answer))
    ]


def params(rng: random.Random) -> SamplingParams:
    """Return greedy parameters half of the time, else random values of all parameters that affect a draw."""
    max_tokens = rng.randint(4, 48)
    if rng.random() < 0.5:
        return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=rng.random() < 0.5, logprobs=0)
    return SamplingParams(
        temperature=rng.choice((0.7, 1.0, 1.6)),
        top_p=rng.choice((1.0, 0.9)),
        top_k=rng.choice((0, 40)),
        presence_penalty=rng.choice((0.0, 0.4)),
        frequency_penalty=rng.choice((0.0, 0.2)),
        seed=rng.getrandbits(31),
        max_tokens=max_tokens,
        ignore_eos=rng.random() < 0.5,
        logprobs=0,
    )


def requests_of(llm: LLM, count: int, seed: int) -> list[Request]:
    """Return mixed requests, of which one in five repeats an earlier prompt and some are siblings."""
    rng = random.Random(seed)
    prompts: list[Prompt] = []
    requests: list[Request] = []
    for number in range(count):
        sibling = None
        if prompts and rng.random() < 0.2:
            earlier = rng.randrange(len(prompts))
            prompts.append(prompts[earlier])
            sibling = requests[earlier].id if rng.random() < 0.5 else None
        else:
            prompts.append(llm.prompt(conversation(rng)))
        priority = rng.choice((0, 0, 0, 1)) if sibling is None else requests[earlier].priority
        requests.append(Request(f"r{number}", prompts[-1], params(rng), priority, sibling_of=sibling))
    scored = random.Random(seed)
    return [
        replace(each, params=replace(each.params, prompt_logprobs=2)) if scored.random() < 0.25 else each
        for each in requests
    ]


def engine_of(llm: LLM, **options: Any) -> Engine:
    """Return a new engine with the loaded model."""
    return Engine(llm.engine.model, EngineConfig(**options), stop_ids=llm.tokenizer.stop_ids)


def alone(llm: LLM, requests: Sequence[Request]) -> Answers:
    """Answer each request by itself, its prompt in one chunk, without caches."""
    engine = engine_of(
        llm, enable_prefix_caching=False, image_cache_memory=0, max_num_batched_tokens=16_384, max_num_batched_tiles=64
    )
    answers: Answers = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
        while engine.has_work:
            _step(engine, answers)
    return answers


def _step(engine: Engine, answers: Answers) -> None:
    for output in engine.step():
        if output.prompt_logprobs:
            answers[output.request_id] += [
                (0, 0.0 if each is None else each.logprob) for each in output.prompt_logprobs
            ]
        logprobs = [each.logprob for each in output.logprobs]
        answers[output.request_id] += zip(output.token_ids, logprobs, strict=True)


def together(engine: Engine, requests: Sequence[Request], seed: int) -> Answers:
    """Answer all requests, which arrive in bursts; check the engine's invariants after every step."""
    rng = random.Random(seed)
    pending = list(requests)
    answers: Answers = {request.id: [] for request in requests}
    while pending or engine.has_work:
        while pending and not engine.is_full and (rng.random() < 0.3 or not engine.has_work):
            engine.add(pending.pop(0))
        _step(engine, answers)
        engine.check_integrity()
    return answers


def reference(requests: Sequence[Request], count: int) -> tuple[int, int]:
    """Answer greedy requests by the reference path; return how many were asked and how many differ."""
    slow, fast = LLM(reference=True), LLM()
    asked = [request for request in requests if request.params.temperature == 0][:count]
    pairs = [([request.prompt], request.params) for request in asked]
    return len(asked), sum(slow.generate(*pair)[0].token_ids != fast.generate(*pair)[0].token_ids for pair in pairs)


def differing(expected: Answers, got: Answers) -> dict[str, int]:
    """Count the tokens that differ, and the log probabilities that are not equal to the bit."""
    counts = {"differing_tokens": 0, "differing_logprobs": 0}
    for name, answer in expected.items():
        pairs = list(zip_longest(answer, got[name], fillvalue=(-1, 0.0)))
        counts["differing_tokens"] += sum(a[0] != b[0] for a, b in pairs)
        counts["differing_logprobs"] += sum(a[1] != b[1] for a, b in pairs)
    return counts


def main() -> int:
    """Run the check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument(
        "--reference", type=int, default=100, help="number of greedy requests that the reference path answers, too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantization", default="none", help="quantisation of the model: none, int8 or int4")
    args = parser.parse_args()
    llm = LLM(quantization=args.quantization)
    requests = requests_of(llm, args.requests, args.seed)
    expected = alone(llm, requests)
    num_tokens = sum(map(len, expected.values()))
    print(f"alone: {len(requests)} requests, {num_tokens} log probabilities", flush=True)
    result: dict[str, Any] = {
        "quantization": args.quantization, "requests": len(requests), "logprobs": num_tokens
    }  # fmt: skip
    longest = max(request.prompt.num_tokens for request in requests) + 64
    token_bytes = llm.engine.kv_cache_bytes // llm.engine.kv_cache_tokens
    tight = {"max_model_len": longest, "kv_cache_memory": 2 * (longest + 16) * token_bytes, "max_num_seqs": 16}
    for name, options in {
        "company": {"max_num_batched_tokens": 100},
        "company, small chunks": {"max_num_batched_tokens": 17, "max_num_seqs": 7},
        "preempted": {**tight, "max_num_batched_tokens": 64},
        "preempted, no prefix cache": {**tight, "enable_prefix_caching": False, "image_cache_memory": 0},
    }.items():
        start = time.perf_counter()
        engine = engine_of(llm, **options)
        counts = differing(expected, together(engine, requests, args.seed + 1))
        stats = engine.stats()
        result[name] = {
            **counts,
            "preemptions": stats.num_preemptions,
            "prefix_hit_tokens": stats.num_prefix_hit_tokens,
            "image_hits": stats.num_image_hits,
            "blocks_in_use": stats.num_blocks - stats.num_free_blocks,
        }
        print(f"{name}: {result[name]} in {time.perf_counter() - start:.0f} s", flush=True)
    wrong = 0
    if args.quantization == "none":
        asked, wrong = reference(requests, args.reference)
        result["reference"] = {"prompts": asked, "differing_answers": wrong}
        print(f"reference: {asked} greedy prompts, {wrong} with other answers", flush=True)
    print(json.dumps(result))
    return int(wrong > 0 or any(row.get("differing_logprobs") for row in result.values() if isinstance(row, dict)))


if __name__ == "__main__":
    sys.exit(main())
