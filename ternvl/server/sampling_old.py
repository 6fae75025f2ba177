"""A request's sampling fields to what the engine takes."""

from __future__ import annotations

import dataclasses
import secrets
from typing import TYPE_CHECKING, Any

from ternvl.engine.request import Request, check_params
from ternvl.lora.bank import Adapter
from ternvl.params import SamplingParams
from ternvl.server.schema.sampling import SamplingFields
from ternvl.types import Prompt

if TYPE_CHECKING:
    from ternvl.llm import LLM

_DIRECT = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens",
    "ignore_eos", "stop_token_ids", "allowed_token_ids", "include_stop_str_in_output", "skip_special_tokens",
)  # fmt: skip
"""Fields that `SamplingParams` has under the same name and with the same meaning."""


def new_id(kind: str, mark: str = "-") -> str:
    """An id that no other answer has."""
    return f"{kind}{mark}{secrets.token_hex(12)}"


def to_params(request: SamplingFields, llm: LLM) -> SamplingParams:
    """Sampling parameters: what the request says, else the checkpoint's defaults.

    Raises RequestError for a token that the vocabulary lacks.
    """
    given: dict[str, Any] = {name: getattr(request, name) for name in _DIRECT}
    given["top_k"] = None if request.top_k is None else max(request.top_k, 0)
    given["max_tokens"] = request.answer_limit
    given["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    given["logprobs"] = request.num_logprobs
    given["logit_bias"] = tuple((int(token_id), bias) for token_id, bias in (request.logit_bias or {}).items())
    given = {name: value for name, value in given.items() if value is not None}
    params = dataclasses.replace(llm.default_params(), **given)
    check_params(params, llm.config.language.vocab_size, llm.tokenizer.stop_ids)
    return params


def to_requests(
    answer_id: str, prompt: Prompt, params: SamplingParams, request: SamplingFields, adapter: Adapter | None = None
) -> list[Request]:
    """One request a choice. Choice i has seed + i; without a seed the engine gives each its own."""
    salt = request.cache_salt or ""
    first = Request(f"{answer_id}-0", prompt, params, request.priority or 0, salt, adapter=adapter)
    seed = request.seed
    seeds = [None if seed is None else (seed + index) % 2**63 for index in range(request.num_answers)]
    return [
        dataclasses.replace(
            first,
            id=f"{answer_id}-{index}",
            params=dataclasses.replace(params, seed=choice_seed),
            sibling_of=first.id if index else None,
        )
        for index, choice_seed in enumerate(seeds)
    ]
