"""Measure the cost of a grammar in a decode step of eight streams.

    python benchmarks/random_checkpoint.py OUT --layout original --tokenizer DIR
    python benchmarks/grammar_step.py OUT

Eight answers are decoded together, alternately without and with a grammar, and each step is timed. Within the steps,
the masks (`masks`, which a thread computes in parallel to the model) and their application to the logits (`apply`) are
timed, too. `share` is the sum of both divided by the time of the step, as if nothing ran in parallel. Times are in
milliseconds, medians over all steps. The last line is JSON. The exit code is 1 if a share exceeds 5 %.
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
    """Records the milliseconds of each call of the functions that it wraps."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return `work` with its calls timed."""

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = work(*arguments)
            self.times.append((time.perf_counter() - begin) * 1e3)
            return result

        return timed


def decode(llm: LLM, engine: Engine, grammar: Grammar | None, num_tokens: int, turn: int) -> list[float]:
    """Return the milliseconds of each step in which all streams get a token."""
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
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="folder of a checkpoint; by default the embedded model")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=33, help="number of tokens of an answer")
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
