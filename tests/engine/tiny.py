"""Tiny random models and prompts, and what the tests do with engines again and again."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ternvl.config import EngineConfig, LanguageConfig, ModelConfig, VisionConfig
from ternvl.engine.engine import Engine
from ternvl.engine.reference import generate
from ternvl.engine.request import Request
from ternvl.model.internvl import InternVL
from ternvl.model.kv_cache import block_bytes
from ternvl.params import SamplingParams
from ternvl.types import FinishReason, ImageSpan, Prompt, PromptLogprobs, TokenLogprobs, TokenOutput

VOCAB_SIZE = 61
STOP_IDS = (3, 7)
CONTEXT_ID = 5
LANGUAGE = LanguageConfig(32, 2, 4, 2, 48, VOCAB_SIZE, max_position_embeddings=512)
CONFIG = ModelConfig(VisionConfig(16, 1, 2, 32, image_size=16, patch_size=4), LANGUAGE, dtype="float32")


def make_model(config: ModelConfig = CONFIG, seed: int = 0) -> InternVL:
    """Random weights, wide enough that the best token leads by far more than float32 rounds."""
    torch.manual_seed(seed)
    model = InternVL(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.0 if "embed" in name or "lm_head" in name else 0.25)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model.requires_grad_(False).eval()


def text_prompt(rng: random.Random, num_tokens: int) -> Prompt:
    return Prompt(tuple(rng.randrange(8, VOCAB_SIZE) for _ in range(num_tokens)))


def image_prompt(rng: random.Random, tiles: Iterable[int], *, gap: int = 3, config: ModelConfig = CONFIG) -> Prompt:
    """Text, then for each count an image of that many random tiles and text after it."""
    ids = list(text_prompt(rng, gap).token_ids)
    spans: list[ImageSpan] = []
    pixels: list[torch.Tensor] = []
    for count in tiles:
        side = config.tile_size
        values = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
        num_tokens = count * config.tokens_per_tile
        digest = hashlib.sha256(values.numpy().tobytes()).digest()
        spans.append(ImageSpan(len(ids), num_tokens, sum(map(len, pixels)), count, digest))
        pixels.append(values)
        ids += [CONTEXT_ID] * num_tokens + list(text_prompt(rng, gap).token_ids)
    return Prompt(tuple(ids), tuple(spans), torch.cat(pixels) if pixels else None)


def make_engine(model: InternVL, *, num_blocks: int = 200, block_size: int = 4, **options: Any) -> Engine:
    """An engine whose context is what its blocks hold, or what the model knows, unless it is given."""
    memory = num_blocks * block_bytes(model.config.language, block_size, model.dtype)
    options = {
        "max_model_len": min(num_blocks * block_size, model.config.language.max_position_embeddings),
        "max_num_seqs": min(16, options.get("max_num_batched_tokens", 16)),
        **options,
    }
    config = EngineConfig(kv_cache_memory=memory, block_size=block_size, **options)
    return Engine(model, config, stop_ids=STOP_IDS)


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: PromptLogprobs = ()
    stop: tuple[int, TokenLogprobs] | None = None

    def take(self, output: TokenOutput) -> None:
        assert self.finish_reason is None, "an output after the end"
        assert not output.prompt_logprobs or not self.token_ids, "the prompt's come late"
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        self.stop = output.stop
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.finish_reason = output.finish_reason


def run(engine: Engine, requests: Iterable[Request], *, max_steps: int = 5000) -> dict[str, Answer]:
    """Add requests, step until nothing is left, check the books after each step."""
    answers: dict[str, Answer] = defaultdict(Answer)
    for request in requests:
        engine.add(request)
    for _ in range(max_steps):
        if not engine.has_work:
            return answers
        for output in engine.step():
            answers[output.request_id].take(output)
        engine.check_integrity()
    raise AssertionError("the engine does not come to an end")


def expected(model: InternVL, request: Request, max_model_len: int = 512) -> Answer:
    """The reference's answer."""
    outputs: Iterator[TokenOutput] = generate(model, request, stop_ids=STOP_IDS, max_model_len=max_model_len)
    answer = Answer()
    for output in outputs:
        answer.take(output)
    return answer


def mixed_requests(seed: int, count: int, *, max_tokens: int = 24) -> list[Request]:
    """Greedy and seeded requests with penalties here and there; texts, and images of 1 to 3 tiles."""
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        tiles = rng.choice([(), (), (1,), (3,), (2, 1)])
        prompt = image_prompt(rng, tiles) if tiles else text_prompt(rng, rng.randrange(1, 60))
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.5]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 20]),
            min_p=rng.choice([0.0, 0.02]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, 0.3]),
            repetition_penalty=rng.choice([1.0, 1.1]),
            seed=rng.randrange(1000),
            max_tokens=rng.randrange(1, max_tokens),
            min_tokens=rng.choice([0, 1]),
            ignore_eos=rng.random() < 0.7,
        )
        requests.append(Request(f"r{number}", prompt, params, priority=rng.choice([0, 0, 1])))
    return requests
