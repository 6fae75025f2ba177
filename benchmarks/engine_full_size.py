"""Measure the engine with many clients at the size of InternVL3-1B, in four scenarios.

    python benchmarks/random_checkpoint.py DIR --layout original --tokenizer TOKENIZER
    python benchmarks/engine_full_size.py DIR                      # all scenarios: about half an hour on two cores
    python benchmarks/engine_full_size.py DIR --only streams gap

streams  tokens/s of 8 text streams and of one, alternating in one run; and the time of attention per token, by context
         and by number of sequences
gap      4 streams decode while an image of 13 tiles arrives: the longest gap between two tokens of a stream, compared
         with the time of one batch of tiles and two ordinary steps (the streams' tokens and a chunk of the new prompt);
         and the same with all tiles in one batch
repeat   the time to the first token of an image and a question, of the same image and question again, and of another
         image of the same size with the same question
long     a prompt of 16,384 tokens of text, and one filled by images; peak memory; a prompt of 16,385 is refused

The script runs the engine's steps itself, so that only the engine is measured. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from ternvl import LLM
from ternvl.bench import share
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.engine.schedule import TileWork
from ternvl.errors import ContextLengthError
from ternvl.kernels.attention import paged_attention
from ternvl.params import SamplingParams
from ternvl.types import Prompt

QUESTION = "What is in this image?"


def text_prompt(llm: LLM, num_tokens: int, seed: int) -> Prompt:
    """Return a prompt of random ordinary tokens, which shares no prefix with other prompts."""
    rng = random.Random(seed)
    most = llm.config.language.vocab_size // 2
    return Prompt(tuple(rng.randrange(300, most) for _ in range(num_tokens)))


def picture(seed: int, size: tuple[int, int] = (1000, 747)) -> Image.Image:
    """Return an image of smoothed noise, which makes 13 tiles at the default size."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))


def _image_message(image: Image.Image) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]


def _greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def _drain(engine: Engine) -> list[int]:
    """Run steps until no work is left; return all tokens in the order of their steps."""
    tokens = []
    while engine.has_work:
        tokens += [token for output in engine.step() for token in output.token_ids]
    return tokens


def streams(llm: LLM) -> dict[str, Any]:
    """Measure decoding only: prompts are computed before the clock starts."""
    engine = _engine(llm)
    rates: dict[int, list[float]] = defaultdict(list)
    for turn in range(3):
        for count in (1, 8):
            for i in range(count):
                prompt = text_prompt(llm, 64, seed=1000 * turn + 10 * count + i)
                engine.add(Request(f"{turn} {count} {i}", prompt, _greedy(33)))
            while any(sequence.num_uncomputed > 1 for sequence in engine.scheduler.waiting + engine.scheduler.running):
                engine.step()
            start, num_tokens = time.perf_counter(), len(_drain(engine))
            rates[count].append(num_tokens / (time.perf_counter() - start))
            print(f"  {count} streams: {rates[count][-1]:.1f} tokens/s", flush=True)
    one, eight = (statistics.median(rates[count]) for count in (1, 8))
    result = {"one": round(one, 2), "eight": round(eight, 2), "ratio": round(eight / one, 2)}
    decoder = llm.engine.model.language_model
    whole = sum(tensor.nbytes for tensor in decoder.state_dict().values())
    read = whole - sum(tensor.nbytes for tensor in decoder.model.embed_tokens.state_dict().values())
    print(f"  one stream reads {read / 1e6:.0f} MB a token: {share(bytes_per_s=one * read)}", flush=True)
    return {**result, "attention_us_a_token_and_layer": attention_costs(llm)}


def attention_costs(llm: LLM) -> dict[str, dict[str, float]]:
    """Return the microseconds of attention per token and layer, by context and then by number of sequences."""
    config = llm.config.language
    costs: dict[str, dict[str, float]] = {}
    for context in (256, 1024, 4096):
        blocks = context // 16
        pool = torch.randn(2, 16 * blocks, config.num_kv_heads, config.head_dim * 16)
        keys = pool[0].view(-1, config.num_kv_heads, config.head_dim, 16)
        values = pool[1].view(-1, config.num_kv_heads, 16, config.head_dim)
        tables = torch.randperm(16 * blocks).int().view(16, blocks)
        times: dict[int, list[float]] = defaultdict(list)
        for _ in range(9):
            for count in (1, 4, 16):
                q = torch.randn(count, config.num_heads, config.head_dim)
                starts, lengths = torch.arange(count + 1).int(), torch.full((count,), context).int()
                start = time.perf_counter()
                for _ in range(8):
                    paged_attention(q, keys, values, tables[:count], starts, lengths)
                times[count].append((time.perf_counter() - start) / 8 / count * 1e6)
        costs[str(context)] = {str(count): round(statistics.median(each), 1) for count, each in times.items()}
        print(f"  attention over {context} tokens, us a token, by sequences: {costs[str(context)]}", flush=True)
    return costs


def gap(llm: LLM) -> dict[str, Any]:
    """Measure the longest gaps, with the tiles in batches and with all tiles at once."""
    result: dict[str, Any] = {}
    for name, tiles in (("one tile a step", 1), ("whole image", 64)):
        engine = _engine(llm, max_num_batched_tiles=tiles)
        for i in range(4):
            engine.add(Request(f"stream {i}", text_prompt(llm, 64, seed=i), _greedy(10_000)))
        for _ in range(6):
            engine.step()
        ordinary = statistics.median(_timed(engine.step) for _ in range(8))
        engine.add(Request("image", llm.prompt(_image_message(picture(0))), _greedy(4)))
        result[name] = _watch(engine, ordinary)
        print(f"  {name}: {result[name]}", flush=True)
    return result


def _watch(engine: Engine, ordinary: float) -> dict[str, Any]:
    """Run steps until the image has its answer; return the gaps between two tokens of a stream."""
    last = dict.fromkeys((f"stream {i}" for i in range(4)), time.perf_counter())
    longest, batches, ordinaries, answered = 0.0, [], [ordinary], False
    encode = engine.runner.encode

    def timed_encode(work: Sequence[TileWork]) -> None:
        batches.append(_timed(lambda: encode(work)))

    engine.runner.encode = timed_encode  # type: ignore[method-assign]
    while not answered:
        start = time.perf_counter()
        outputs = engine.step()
        now = time.perf_counter()
        ordinaries.append(now - start - batches[-1])
        for output in outputs:
            answered |= output.request_id == "image" and output.finish_reason is not None
            if output.request_id in last:
                longest, last[output.request_id] = max(longest, now - last[output.request_id]), now
    batches = [seconds for seconds in batches if seconds > 0.001]  # the other steps had no tiles
    bound = max(batches) + 2 * max(ordinaries)
    return {
        "longest_gap_s": round(longest, 2),
        "longest_tile_batch_s": round(max(batches), 2),
        "longest_ordinary_step_s": round(max(ordinaries), 2),
        "gap_over_bound": round(longest / bound, 3),
        "decode_step_s": round(ordinary, 3),
        "num_tile_batches": len(batches),
    }


def repeat(llm: LLM) -> dict[str, Any]:
    """Measure the time to the first token, including the preparation of the image."""
    engine = _engine(llm)
    result: dict[str, Any] = {}
    for name, image in (("first", picture(0)), ("again", picture(0)), ("other", picture(1))):
        start = time.perf_counter()
        request = Request(name, llm.prompt(_image_message(image)), _greedy(1))
        prepared = time.perf_counter() - start
        engine.add(request)
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        result[name] = {
            "first_token_s": round(time.perf_counter() - start, 2),
            "prepared_s": round(prepared, 2),
            "cached_tokens": outputs[-1].num_cached_tokens,
            "prompt_tokens": request.prompt.num_tokens,
            "image_starts_at": request.prompt.images[0].start,
            "token": outputs[-1].token_ids[0],
        }
        print(f"  {name}: {result[name]}", flush=True)
    result["share_of_the_first_time"] = round(result["again"]["first_token_s"] / result["first"]["first_token_s"], 4)
    return result


def long(llm: LLM) -> dict[str, Any]:
    """Fill the whole context, with text and with images."""
    engine = _engine(llm)
    limit = engine.config.max_model_len
    result: dict[str, Any] = {"max_model_len": limit}
    text = text_prompt(llm, limit, seed=5)
    try:
        engine.add(Request("too long", text_prompt(llm, limit + 1, seed=6), _greedy(1)))
    except ContextLengthError as error:
        result["one_more"] = str(error)
    for name, prompt in (("text", text), ("images", _filled_with_images(llm, limit))):
        engine.add(Request(name, prompt, _greedy(1)))
        start, steps = time.perf_counter(), 0
        while engine.has_work:
            outputs = engine.step()
            steps += 1
            if steps % 8 == 0:
                computed = max((s.num_computed for s in engine.scheduler.running), default=limit)
                print(f"  {name}: {computed} tokens, {time.perf_counter() - start:.0f} s", flush=True)
        result[name] = {
            "prompt_tokens": prompt.num_tokens,
            "image_tokens": prompt.num_image_tokens,
            "first_token_s": round(time.perf_counter() - start, 1),
            "finish_reason": str(outputs[-1].finish_reason),
            "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        }
        print(f"  {name}: {result[name]}", flush=True)
    return result


def _filled_with_images(llm: LLM, limit: int) -> Prompt:
    """Return a prompt of one 13-tile image four times, which is encoded once, and text up to the limit."""
    image = {"type": "image", "image": picture(2)}
    prompt = llm.prompt([{"role": "user", "content": [image] * 4 + [{"type": "text", "text": "Compare."}]}])
    filler = text_prompt(llm, limit - prompt.num_tokens, seed=7).token_ids
    return Prompt(prompt.token_ids + filler, prompt.images, prompt.pixel_values)


def _engine(llm: LLM, **options: Any) -> Engine:
    """Return a new engine with the loaded model."""
    config = replace(llm.engine.config, kv_cache_memory=None, **options)
    return Engine(llm.engine.model, config, stop_ids=llm.tokenizer.stop_ids)


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    """Run the scenarios; return the exit code."""
    questions = {question.__name__: question for question in (streams, gap, repeat, long)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a checkpoint with its tokenizer")
    parser.add_argument("--only", nargs="+", choices=questions, default=list(questions))
    args = parser.parse_args()
    start = time.perf_counter()
    llm = LLM(args.model, kv_cache_memory=None, max_num_seqs=8)
    result: dict[str, Any] = {"load_s": round(time.perf_counter() - start, 1), "threads": torch.get_num_threads()}
    result["kv_cache"] = {"bytes": llm.engine.kv_cache_bytes, "tokens": llm.engine.kv_cache_tokens}
    for name in args.only:
        print(f"{name}:", flush=True)
        result[name] = questions[name](llm)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
