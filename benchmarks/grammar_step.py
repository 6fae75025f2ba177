"""What does a grammar cost within a decode step of eight streams?

    python benchmarks/random_checkpoint.py OUT --layout original --tokenizer DIR
    python benchmarks/grammar_step.py OUT

Eight answers are decoded together, in turns free and under a grammar, and each step is timed as it is; within the
steps, so are the masks (`masks`, computed by a thread beside the model) and taking them to the logits (`apply`).
`share` is both together of the step they were in, as if nothing of them ran beside the model. Milliseconds, medians
over all steps.
The last line is JSON; exit code 1 where a share is beyond 5 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ternvl import LLM
from ternvl.engine import engine as engine_module
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.params import Grammar, SamplingParams
from ternvl.sampling import processors
from ternvl.sampling.tools import Tools

NUM_STREAMS = 8
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "days"],
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
GRAMMARS = {
    "free": None,
    "json_schema": Grammar.of("json_schema", SCHEMA),
    "tools": Tools([TOOL], "required").grammar(),
}
BOUND = 0.05


class Stopwatch:
    """Milliseconds of each call of what it wraps."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, timed."""

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = work(*arguments)
            self.times.append((time.perf_counter() - begin) * 1e3)
            return result

        return timed


def decode(llm: LLM, engine: Engine, grammar: Grammar | None, num_tokens: int, turn: int) -> list[float]:
    """Milliseconds of each step in which all streams take a token."""
    params = SamplingParams(temperature=0.8, max_tokens=num_tokens, ignore_eos=True, grammar=grammar)
    prompts = [llm.prompt([{"role": "user", "content": f"{turn} {number}"}]) for number in range(NUM_STREAMS)]
    for number, prompt in enumerate(prompts):
        engine.add(Request(f"{turn} {number}", prompt, params))
    while any(each.num_uncomputed > 1 for each in engine.scheduler.waiting + engine.scheduler.running):
        engine.step()
    step = Stopwatch()
    while len(engine.scheduler.running) == NUM_STREAMS:
        step(engine.step)()
    while engine.has_work:
        engine.step()
    return step.times


def main() -> int:
    """Run the benchmark; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="folder of a checkpoint; else the embedded model")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=33, help="of an answer")
    options = parser.parse_args()
    llm = LLM(options.model, max_model_len=1024)
    engine = llm.engine
    assert isinstance(engine, Engine)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    plain_fill, plain_apply = engine_module.fill_masks, processors.apply_bitmask
    for turn in range(options.turns):
        for name, grammar in GRAMMARS.items():
            masks, apply = Stopwatch(), Stopwatch()
            engine_module.fill_masks, processors.apply_bitmask = masks(plain_fill), apply(plain_apply)
            times = decode(llm, engine, grammar, options.tokens, turn)
            for kind, values in (("step", times), ("masks", masks.times), ("apply", apply.times)):
                found[name][kind] += values
            print(f"turn {turn}, {name}: {len(times)} steps", flush=True)
    result: dict[str, Any] = {"vocab_size": llm.config.language.vocab_size, "streams": NUM_STREAMS}
    for name, kinds in found.items():
        result[name] = {kind: round(statistics.median(values), 2) for kind, values in kinds.items() if values}
        if name != "free":
            result[name]["share"] = round((result[name]["masks"] + result[name]["apply"]) / result[name]["step"], 4)
        print(name, result[name])
    print(json.dumps(result))
    return int(any(result[name]["share"] > BOUND for name in GRAMMARS if name != "free"))


if __name__ == "__main__":
    sys.exit(main())
