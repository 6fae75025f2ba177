"""The worker of ternvl: `worker_ternvl.py MODEL none|int8|int4`, which uses the engine offline.

The prefix cache and speculation are off: random weights repeat themselves, which would make speculation look too good.
"""

from __future__ import annotations

import sys
import time
from itertools import count
from typing import Any

from PIL import Image
from protocol import Answer, Ask, Contestant, UnavailableError, serve

import ternvl
from ternvl import LLM, SamplingParams
from ternvl.engine.request import Request
from ternvl.errors import ConfigError

OPTIONS: dict[str, Any] = {"enable_prefix_caching": False, "speculation": "off"}


def messages(ask: Ask) -> list[dict[str, object]]:
    """Return the ask as OpenAI messages."""
    content: list[dict[str, object]] = [{"type": "text", "text": ask.text}]
    if ask.image:
        content.insert(0, {"type": "image", "image": Image.open(ask.image)})
    return [{"role": "user", "content": content}]


def decode_bytes(llm: LLM) -> int:
    """Return the bytes of the decoder without its embeddings, of which a token reads one row."""
    decoder = llm.engine.model.language_model
    whole = sum(tensor.nbytes for tensor in decoder.state_dict().values())
    return whole - sum(tensor.nbytes for tensor in decoder.model.embed_tokens.state_dict().values())


def load() -> Contestant:
    """Load the model. Raises UnavailableError if this version or this machine does not support the format."""
    folder, quantization = sys.argv[1:3]
    try:
        llm = LLM(folder, quantization=quantization, **OPTIONS)
    except ConfigError as error:
        raise UnavailableError(f"not available: {error}") from error
    names = count()

    def answer(asks: list[Ask]) -> list[Answer]:
        start = time.perf_counter()
        requests = [request(llm, ask, f"peers {next(names)}") for ask in asks]
        for each in requests:
            llm.engine.add(each)
        times: dict[str, list[float]] = {each.id: [] for each in requests}
        while llm.engine.has_work:
            outputs = llm.engine.step()
            now = time.perf_counter() - start
            for output in outputs:
                times[output.request_id] += [now] * len(output.token_ids)
        return [
            Answer(each.prompt.num_tokens, len(times[each.id]), times[each.id][0], times[each.id][-1])
            for each in requests
        ]

    return Contestant(answer, f"ternvl {ternvl.__version__}", decode_bytes(llm))


def request(llm: LLM, ask: Ask, name: str) -> Request:
    """Return the request for an ask. The time to prepare its tokens and tiles is measured, too."""
    params = SamplingParams(temperature=0, max_tokens=ask.max_tokens, ignore_eos=True)
    return Request(name, llm.prompt(messages(ask)), params)


if __name__ == "__main__":
    serve(load)
