"""The worker of OpenVINO GenAI: `worker_openvino.py MODEL one|many`.

`one` uses VLMPipeline, `many` ContinuousBatchingPipeline with 2 GB of cache, 16 sequences and no prefix cache.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from PIL import Image
from protocol import Answer, Ask, Contestant, serve


def picture(path: str) -> Any:
    """Return an image as a tensor [1, height, width, 3] of bytes."""
    return openvino.Tensor(np.asarray(Image.open(path).convert("RGB"))[None])


def forced(num_tokens: int) -> Any:
    """Return the settings of a greedy answer of exactly `num_tokens` tokens."""
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = num_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def answer_of(result: Any, start: float, end: float, num_asks: int = 1) -> Answer:
    """Return the answer from the pipeline's own measurements, which count the tokens of all asks together."""
    metrics = result.perf_metrics
    num_tokens = metrics.get_num_generated_tokens() // num_asks
    rest = metrics.get_tpot().mean / 1000 * (num_tokens - 1) if num_tokens > 1 else 0.0
    return Answer(metrics.get_num_input_tokens(), num_tokens, end - start - rest, end - start)


def one(model: str) -> Contestant:
    """Load VLMPipeline."""
    pipeline = genai.VLMPipeline(model, "CPU", PERFORMANCE_HINT="LATENCY")

    def answer(asks: list[Ask]) -> list[Answer]:
        answers = []
        start = time.perf_counter()
        for ask in asks:
            images = {"images": [picture(ask.image)]} if ask.image else {}
            result = pipeline.generate(ask.text, generation_config=forced(ask.max_tokens), **images)
            answers.append(answer_of(result, start, time.perf_counter()))
        return answers

    return contestant(model, answer)


def many(model: str) -> Contestant:
    """Load ContinuousBatchingPipeline."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.enable_prefix_caching = 2, 16, False
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU")

    def answer(asks: list[Ask]) -> list[Answer]:
        start = time.perf_counter()
        configs = [forced(ask.max_tokens) for ask in asks]
        images = [[picture(ask.image)] if ask.image else [] for ask in asks]
        pictures = {"images": images} if any(images) else {}
        results = pipeline.generate([ask.text for ask in asks], generation_config=configs, **pictures)
        end = time.perf_counter()
        return [answer_of(result, start, end, len(asks)) for result in results]

    return contestant(model, answer)


def contestant(model: str, answer: Any) -> Contestant:
    """Return the contestant. The embeddings have a file of their own, so a token reads the decoder's file only."""
    size = (Path(model) / "openvino_language_model.bin").stat().st_size
    return Contestant(answer, f"openvino-genai {genai.__version__.split('-')[0]}", size)


if __name__ == "__main__":
    serve(lambda: {"one": one, "many": many}[sys.argv[2]](sys.argv[1]))
