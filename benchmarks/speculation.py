"""Measure the gain of speculation on answers that copy, and its cost on others; on and off alternate in one run.

    python benchmarks/speculation.py                    # the embedded model
    python benchmarks/speculation.py DIR --turns 5      # a checkpoint of full size, with its tokenizer

copy   An answer that quotes its prompt: three passages of 20 to 60 tokens, then one new token, and so on. The text is
       this project's documentation.
prose  An answer that quotes nothing: the prompt is the beginning of a text, the answer its continuation.
own    Only for the embedded model: it repeats words, as it was trained to do, and generates its answers itself.
rows   The time of a step by the number of tokens of one sequence that it computes.

A model with random weights cannot write such answers, so in `copy` and `prose` the answer is planted: everything is
computed as usual, including the draw, but then the next token of the text replaces the drawn one. So the acceptance of
drafts depends only on the text. Times are of decoding, since prompts are computed before. `ratio` is the median time
without speculation divided by that with it, and `cpu_ratio` the same for processor time. Every turn has two runs
without speculation; `control` is their ratio. Its distance from 1 is noise, so a `ratio` no further from 1 has no
meaning. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternvl import LLM
from ternvl.engine import draw
from ternvl.engine.batch import Batch
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.params import SamplingParams
from ternvl.sampling.sampler import Draw, Drawn, sample
from ternvl.types import Prompt
from training import tasks

ANSWER, PROMPT = 160, 300
KINDS = ("rows", "copy", "prose", "own")
DOCS = Path(__file__).parents[1] / "docs"
Case = tuple[Prompt, list[int]]
"""A prompt and its planted answer, which is empty if the model generates the answer itself."""


def texts(llm: LLM) -> list[list[int]]:
    """Return the tokens of the documentation's pages that are long enough."""
    encoded = [llm.tokenizer.encode_text(path.read_text("utf-8")) for path in sorted(DOCS.glob("*.md"))]
    return [ids for ids in encoded if len(ids) >= PROMPT + ANSWER]


def copy_case(llm: LLM, number: int) -> Case:
    """Return a prompt, and an answer of its passages in random order."""
    rng = random.Random(number)
    ids = rng.choice(texts(llm))
    start = rng.randrange(len(ids) - PROMPT)
    prompt, answer = ids[start : start + PROMPT], list[int]()
    while len(answer) < ANSWER:
        for _ in range(3):
            first = rng.randrange(PROMPT - 60)
            answer += prompt[first : first + rng.randrange(20, 60)]
        answer.append(rng.randrange(llm.tokenizer.vocab_size // 2))
    return Prompt(tuple(prompt)), answer[:ANSWER]


def prose_case(llm: LLM, number: int) -> Case:
    """Return the beginning of a text, and its continuation as the answer."""
    rng = random.Random(number)
    ids = rng.choice(texts(llm))
    start = rng.randrange(len(ids) - PROMPT - ANSWER + 1)
    return Prompt(tuple(ids[start : start + PROMPT])), ids[start + PROMPT : start + PROMPT + ANSWER]


def own_case(llm: LLM, number: int) -> Case:
    """Return a copying task, which the model answers itself."""
    rng = random.Random(number)
    words = " ".join(tasks.copy(rng).answer for _ in range(4))
    return llm.prompt([{"role": "user", "content": f"Repeat: {words}"}]), []


@contextmanager
def planted(answers: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Replace the drawn tokens of requests whose seed is in `answers` by those of the answer, at the usual cost."""

    def draw_planted(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
        return [
            replace(drawn, token_id=answers[wish.seed][len(wish.output_ids)]) if wish.seed in answers else drawn
            for wish, drawn in zip(draws, sample(logits, draws), strict=True)
        ]

    draw.sample = draw_planted  # type: ignore[assignment]
    try:
        yield
    finally:
        draw.sample = sample


def decode(llm: LLM, cases: Sequence[Case], method: str) -> dict[str, Any]:
    """Answer all cases together; return the seconds of the steps after the prompts, and counts."""
    config = replace(llm.engine.config, speculation=method, enable_prefix_caching=False)
    engine = Engine(llm.engine.model, config, stop_ids=llm.tokenizer.stop_ids)
    tokens: dict[str, list[int]] = defaultdict(list)
    for seed, (prompt, answer) in enumerate(cases):
        params = SamplingParams(temperature=0, seed=seed, max_tokens=ANSWER, ignore_eos=bool(answer))
        engine.add(Request(str(seed), prompt, params))
    with planted({seed: answer for seed, (_, answer) in enumerate(cases) if answer}):
        while any(each.num_uncomputed > 1 for each in engine.scheduler.waiting + engine.scheduler.running):
            _step(engine, tokens)
        start, start_cpu = time.perf_counter(), time.process_time()
        while engine.has_work:
            _step(engine, tokens)
    seconds, stats = time.perf_counter() - start, engine.stats()
    cpu = time.process_time() - start_cpu
    return {"seconds": seconds, "cpu": cpu, "steps": stats.num_steps, "tokens": dict(tokens), "stats": stats}


def _step(engine: Engine, tokens: dict[str, list[int]]) -> None:
    for output in engine.step():
        tokens[output.request_id] += output.token_ids


RUNS = ("off", "ngram", "off again")


def compare(llm: LLM, cases: Sequence[Sequence[Case]]) -> dict[str, Any]:
    """Run each group of cases once with and twice without speculation, in rotating order."""
    times: dict[str, list[float]] = defaultdict(list)
    drafted = accepted = num_tokens = differing = 0
    for turn, group in enumerate(cases):
        order = RUNS[turn % 3 :] + RUNS[: turn % 3]
        runs = {name: decode(llm, group, name.split()[0]) for name in order}
        for name, run in runs.items():
            times[name].append(run["seconds"])
            times[f"{name} cpu"].append(run["cpu"])
        differing += any(run["tokens"] != runs["off"]["tokens"] for run in runs.values())
        num_tokens += sum(map(len, runs["off"]["tokens"].values()))
        drafted += runs["ngram"]["stats"].num_draft_tokens
        accepted += runs["ngram"]["stats"].num_accepted_tokens
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {
        "off_s": round(medians["off"], 3),
        "on_s": round(medians["ngram"], 3),
        "ratio": round(medians["off"] / medians["ngram"], 3),
        "cpu_ratio": round(medians["off cpu"] / medians["ngram cpu"], 3),
        "control": round(medians["off"] / medians["off again"], 3),
        "cpu_control": round(medians["off cpu"] / medians["off again cpu"], 3),
        "tokens": num_tokens,
        "drafted": drafted,
        "accepted": accepted,
        "differing_answers": differing,
    }


def rows(llm: LLM, turns: int) -> dict[str, Any]:
    """Return the milliseconds of a step, and its ratio to a step of one row, at a context of 256 tokens."""
    seconds: dict[int, list[float]] = defaultdict(list)
    for _ in range(4 * turns):
        for count in (1, 2, 3, 4, 6, 8, 12, 16):
            seconds[count].append(_run_rows(llm, count))
    one = statistics.median(seconds[1])
    medians = {count: statistics.median(each) for count, each in seconds.items()}
    return {str(count): [round(1e3 * each, 1), round(each / one, 2)] for count, each in medians.items()}


@torch.inference_mode()
def _run_rows(llm: LLM, count: int) -> float:
    engine = llm.engine
    assert isinstance(engine, Engine)
    positions = torch.arange(256, 256 + count)
    blocks = torch.arange(-(-(256 + count) // engine.config.block_size), dtype=torch.int32)
    batch = Batch(
        token_ids=torch.randint(0, llm.config.language.vocab_size, (count,)),
        positions=positions,
        slots=positions,
        copies=torch.zeros(2, 0, dtype=torch.int64),
        block_tables=blocks[None],
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        lengths=torch.tensor([256 + count], dtype=torch.int32),
        images=(),
        scored=(),
        sampled_rows=torch.arange(count),
        adapters=(),
        sampled_adapters=(),
    )
    start = time.perf_counter()
    engine.runner.logits(engine.runner.run(batch)[batch.sampled_rows], ())
    return time.perf_counter() - start


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a checkpoint with its tokenizer")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--quantization", default="none")
    args = parser.parse_args()
    llm = LLM(args.model, quantization=args.quantization, max_model_len=2_048, max_num_seqs=8)
    kinds = {"copy": copy_case, "prose": prose_case} | ({} if args.model else {"own": own_case})
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "turns": args.turns}
    if "rows" in args.only:
        result["rows"] = rows(llm, args.turns)
        print(f"rows: {result['rows']}", flush=True)
    for name, case in ((name, kinds[name]) for name in kinds if name in args.only):
        for streams in args.streams:
            groups = [[case(llm, streams * turn + each) for each in range(streams)] for turn in range(args.turns)]
            result[f"{name}, {streams} streams"] = compare(llm, groups)
            print(f"{name}, {streams} streams: {result[f'{name}, {streams} streams']}", flush=True)
    print(json.dumps(result))
    return int(any(each.get("differing_answers", 0) for each in result.values() if isinstance(each, dict)))


if __name__ == "__main__":
    sys.exit(main())
