"""The attributes of spans, by OpenTelemetry's conventions for generative AI where there are any.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/, without those that hold what was asked and answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from ternvl.params import SamplingParams
from ternvl.prompt.timing import timeline
from ternvl.prompt.timing.timeline import StageTime, Value
from ternvl.server.log.request_log import Record
from ternvl.types import FirstToken, Prompt

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
}

_PARAMS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}
"""The parameters that spans have. Stop strings and forms of answers are texts of the client's, so they are not here."""


def note_answer(answer_id: str, params: SamplingParams, prompts: Sequence[Prompt], adapter: str | None) -> None:
    """Note the facts about an answer for the trace of the current request, if it has one."""
    if (noted := timeline.current.get()) is None:
        return
    values: dict[str, Value | None] = {name: getattr(params, field) for field, name in _PARAMS.items()}
    tiles = sum(image.num_tiles for prompt in prompts for image in prompt.images)
    values |= {"gen_ai.response.id": answer_id, "ternvl.adapter": adapter, "ternvl.tiles": tiles}
    noted.facts |= {name: value for name, value in values.items() if value is not None}


def note_stages(firsts: Sequence[FirstToken], began: float, last: float) -> None:
    """Note the stages of the engine for the trace of the current request, if it has one.

    `firsts` are the times of its choices, which run side by side: a stage goes from the first of them to the last,
    except that the queue ends and the answer begins with the first. Without times, all is one stage. `began` and `last`
    are when the request went to the engine and when its last token came, in seconds of `perf_counter`.
    """
    if (noted := timeline.current.get()) is None:
        return
    if not firsts:
        return noted.add(StageTime("generate", began, last))
    started, drawn = min(each.started for each in firsts), min(each.drawn for each in firsts)
    noted.add(StageTime("queue", min(each.added for each in firsts), started))
    encodings = [each.encoding for each in firsts if each.encoding is not None]
    if encodings:
        noted.add(StageTime("vision", min(began for began, _ in encodings), max(ended for _, ended in encodings)))
    noted.add(StageTime("prefill", started, drawn))
    noted.add(StageTime("decode", drawn, max(drawn, last)))


def of_record(record: Record, endpoint: str) -> dict[str, Value | list[str]]:
    """Return the attributes of a request from its record; none if no model answered."""
    if not record.model:
        return {}
    return {
        "gen_ai.operation.name": _OPERATIONS.get(endpoint, endpoint),
        "gen_ai.provider.name": "ternvl",
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.response.finish_reasons": list(record.finish_reasons),
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.output_tokens": record.answer_tokens,
        "ternvl.images": record.num_images,
        "ternvl.image_tokens": record.image_tokens,
        "ternvl.queue_seconds": record.queue_seconds,
        "ternvl.first_token_seconds": record.first_token_seconds,
    }
