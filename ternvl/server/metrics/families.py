"""The metrics: their names, vLLM's names for those that mean the same, and what they say.

A name of vLLM (https://docs.vllm.ai/en/stable/design/metrics.html) is only given to what has its meaning and its unit.
"""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
_BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_ANSWER = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
_NUMBERS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. `ternvl` and `vllm` are its names without their prefixes and suffixes; None where it has none."""

    ternvl: str | None
    vllm: str | None
    text: str
    buckets: tuple[float, ...] = ()
    """Those of a histogram."""
    labels: tuple[str, ...] = ()
    """Further labels, beside the model's name."""


HISTOGRAMS = {
    "first_token": Family(
        "time_to_first_token_seconds",
        "time_to_first_token_seconds",
        "Seconds from a request to its first token, including images and the queue.",
        _FIRST_TOKEN,
    ),
    "between_tokens": Family(
        "inter_token_seconds",
        "inter_token_latency_seconds",
        "Seconds from one token of an answer to the next.",
        _BETWEEN_TOKENS,
    ),
    "token": Family(
        "answer_seconds_per_token",
        "request_time_per_output_token_seconds",
        "Seconds of an answer from its first to its last token, divided by the tokens after the first.",
        _BETWEEN_TOKENS,
    ),
    "answer": Family(
        "answer_seconds", "e2e_request_latency_seconds", "Seconds from a request to the end of an answer.", _ANSWER
    ),
    "queue": Family(
        "answer_queue_seconds",
        "request_queue_time_seconds",
        "Seconds that an answer waited in the engine's queue.",
        _ANSWER,
    ),
    "prefill": Family(
        "answer_prefill_seconds",
        "request_prefill_time_seconds",
        "Seconds from the first step of an answer to its first token.",
        _ANSWER,
    ),
    "decode": Family(
        "answer_decode_seconds",
        "request_decode_time_seconds",
        "Seconds from the first to the last token of an answer.",
        _ANSWER,
    ),
    "inference": Family(
        "answer_inference_seconds",
        "request_inference_time_seconds",
        "Seconds from the first step of an answer to its last token.",
        _ANSWER,
    ),
    "prompt": Family(
        "answer_prompt_tokens", "request_prompt_tokens", "Number of tokens of an answer's prompt.", _TOKENS
    ),
    "generation": Family(
        "answer_tokens", "request_generation_tokens", "Number of tokens of an answer that ended.", _TOKENS
    ),
    "n": Family("request_n", "request_params_n", "The n of a request.", _NUMBERS),
    "grammar": Family("grammar_seconds", None, "Seconds to compile the grammar of a request.", _FIRST_TOKEN),
}
"""What is observed of each request or answer."""

COUNTERS = {
    "prompt_tokens": Family("prompt_tokens", "prompt_tokens", "Number of tokens of answered prompts."),
    "cached_tokens": Family(
        "cached_tokens", "prompt_tokens_cached", "Number of tokens of answered prompts found in the prefix cache."
    ),
    "image_tokens": Family("image_tokens", None, "Number of tokens of images in answered prompts."),
    "tokens": Family("generation_tokens", "generation_tokens", "Number of tokens of answers."),
    "finished": Family("answers", None, "Number of answers that ended.", labels=("finish_reason",)),
    "success": Family(None, "request_success", "Number of answers that ended.", labels=("finished_reason",)),
}
"""What is counted of each request or answer."""

GAUGES = {
    "num_running": Family("engine_running", "num_requests_running", "Number of running sequences."),
    "num_waiting": Family("engine_waiting", "num_requests_waiting", "Number of sequences in the queue."),
    "kv_cache_use": Family(
        "engine_kv_cache_use", "kv_cache_usage_perc", "The share of the KV cache that sequences use, from 0 to 1."
    ),
    "num_blocks": Family("engine_blocks", None, "Number of blocks of the KV cache."),
    "num_free_blocks": Family("engine_free_blocks", None, "Number of blocks of the KV cache that no sequence uses."),
    "num_cached_blocks": Family(
        "engine_cached_blocks", None, "Number of free blocks that the prefix cache still holds."
    ),
}
"""Fields and properties of `EngineStats` as they are now."""

TOTALS = {
    "num_steps": Family("engine_steps", None, "Number of steps of the engine."),
    "num_prompt_tokens": Family(
        "engine_prompt_tokens",
        "prefix_cache_queries",
        "Number of tokens of prompts that the scheduler admitted, each looked up in the prefix cache.",
    ),
    "num_prefix_hit_tokens": Family(
        "engine_prefix_hit_tokens", "prefix_cache_hits", "Number of prompt tokens found in the prefix cache."
    ),
    "num_generated_tokens": Family("engine_generated_tokens", None, "Number of generated tokens."),
    "num_drafts": Family("engine_drafts", "spec_decode_num_drafts", "Number of drafts of speculation."),
    "num_draft_tokens": Family(
        "engine_draft_tokens", "spec_decode_num_draft_tokens", "Number of tokens guessed by speculation."
    ),
    "num_accepted_tokens": Family(
        "engine_accepted_tokens", "spec_decode_num_accepted_tokens", "Number of guessed tokens that were accepted."
    ),
    "num_image_lookups": Family(
        "engine_image_lookups", "mm_cache_queries", "Number of images looked up in the image cache."
    ),
    "num_image_hits": Family("engine_image_hits", "mm_cache_hits", "Number of images found in the image cache."),
    "num_tile_lookups": Family("engine_tile_lookups", None, "Number of image tiles looked up in the image cache."),
    "num_tile_hits": Family("engine_tile_hits", None, "Number of image tiles found in the image cache in memory."),
    "num_stored_tile_hits": Family("engine_stored_tile_hits", None, "Number of image tiles read from disk."),
    "num_damaged_tiles": Family("engine_damaged_tiles", None, "Number of files of image tiles that could not be used."),
    "num_encoded_tiles": Family("engine_encoded_tiles", None, "Number of encoded image tiles."),
    "num_preemptions": Family("engine_preemptions", "num_preemptions", "Number of preempted sequences."),
}
"""Fields of `EngineStats` that only grow."""
