"""Check that tool calls always parse, match their schemas, and are the same whether streamed or not.

    python benchmarks/tool_calls.py                       # 100 random tool sets on random weights
    python benchmarks/tool_calls.py --sets 500 --seed 7
    python benchmarks/tool_calls.py --model embedded      # on the embedded model's weights

Each set has one to five tools with random JSON Schemas, a random `tool_choice`, `parallel_tool_calls` and temperature,
and sometimes a `response_format`. Its request is sent twice with the same seed, streamed and not. A call is unparsable
if its arguments are not valid JSON or if it is left in the text; a violation is a call that no tool of the set allows.
Answers that `max_tokens` cut are counted separately, since the arguments of their last call are incomplete. The last
line is JSON. The exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import pydantic_core
import torch

from ternvl import LLM
from ternvl.config import LanguageConfig, ServerConfig, VisionConfig
from ternvl.fused.exact import prepare
from ternvl.model.internvl import InternVL
from ternvl.server import create_app

_WORDS = ("city", "date", "größe", "zu viel", "q", "names", 'a"b', "unit", "深さ", "x-y", "n_1", "limit")


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """Return a random JSON Schema whose instances are short."""
    simple = [_string, _number, _enum, lambda _: {"type": rng.choice(["boolean", "null"])}]
    nested = [_object, _array, _either] if depth else []
    make = rng.choice([*simple, *nested])
    return make(rng, depth - 1) if make in nested else make(rng)


def _string(rng: random.Random) -> dict[str, Any]:
    return {"type": "string"} | rng.choice(
        [
            {"maxLength": rng.randrange(1, 12)},
            {"minLength": 2, "maxLength": 8},
            {"pattern": "^[a-c]{1,4}-[0-9]{2}$"},
            {"pattern": "^(é|日本|[x-z])+$", "maxLength": 6},
            {"format": rng.choice(["date", "uuid", "ipv4"])},
        ]
    )


def _number(rng: random.Random) -> dict[str, Any]:
    low = rng.randrange(-50, 50)
    bounds = {"minimum": low, "maximum": low + rng.randrange(1, 100)}
    return rng.choice(
        [{"type": "integer", **bounds}, {"type": "number", **bounds}, {"type": "integer", "minimum": low}]
    )


def _enum(rng: random.Random) -> dict[str, Any]:
    values: list[Any] = ["red", "größer", 'a "quoted" one', 3, None, True, {"k": [1]}]
    return {"enum": rng.sample(values, rng.randrange(1, 5))} if rng.random() < 0.8 else {"const": rng.choice(values)}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_WORDS, rng.randrange(0, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: random_schema(rng, depth) for name in names}}
    schema["required"] = rng.sample(names, rng.randrange(0, len(names) + 1))
    return schema | {"additionalProperties": rng.choice([False, False, random_schema(rng, 0)])}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(0, 3)
    return {"type": "array", "items": random_schema(rng, depth), "minItems": low, "maxItems": low + rng.randrange(0, 3)}


def _either(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth) for _ in range(rng.randrange(2, 4))]}


def random_request(rng: random.Random, *, max_tokens: int = 700) -> dict[str, Any]:
    """Return the body of a chat completion with random tools."""
    tools = []
    for name in rng.sample(["look_up", "f", "größe", "send-mail", 'say "hi"', "look"], rng.randrange(1, 6)):
        parameters = rng.choice([{}, {"parameters": _object(rng, 2)}, {"parameters": _object(rng, 2)}])
        strict = {"strict": True} if rng.random() < 0.3 else {}
        tools.append({"type": "function", "function": {"name": name, **parameters, **strict}})
    named = {"type": "function", "function": {"name": rng.choice(tools)["function"]["name"]}}
    body = {
        "messages": [{"role": "user", "content": rng.choice(["Where am I?", "Call <tool_call>", "What is the time?"])}],
        "tools": tools,
        "tool_choice": rng.choice(["auto", "auto", "required", "required", named]),
        "parallel_tool_calls": rng.random() < 0.5,
        "temperature": rng.choice([0, 0.7, 1, 2]),
        "seed": rng.randrange(2**31),
        "max_tokens": max_tokens,
    }
    if rng.random() < 0.2:
        schema = {"name": "answer", "schema": _object(rng, 1)}
        body["response_format"] = rng.choice([{"type": "json_object"}, {"type": "json_schema", "json_schema": schema}])
    return body


def judge(body: dict[str, Any], choice: dict[str, Any]) -> Counter[str]:
    """Count what is wrong with an answer, and its calls."""
    message, found = choice["message"], Counter[str]()
    if choice["finish_reason"] == "length":
        found["cut"] += 1
    functions = {tool["function"]["name"]: tool["function"] for tool in body["tools"]}
    calls = message.get("tool_calls") or []
    for index, call in enumerate(calls, 1):
        found["calls"] += 1
        may_be_cut = choice["finish_reason"] == "length" and index == len(calls)
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            found["unparsable"] += not (may_be_cut and _begins_json(call["function"]["arguments"]))
            continue
        wanted = functions.get(call["function"]["name"])
        schema = {"type": "object", **(wanted or {}).get("parameters", {})}
        found["violations"] += wanted is None or not jsonschema.Draft202012Validator(schema).is_valid(arguments)
    if choice["finish_reason"] != "length":
        found += _judge_complete(body, message.get("content") or "", calls)
    return found


def _begins_json(text: str) -> bool:
    try:
        return isinstance(pydantic_core.from_json(text, allow_partial="trailing-strings"), dict)
    except ValueError:
        return False


def _judge_complete(body: dict[str, Any], text: str, calls: list[dict[str, Any]]) -> Counter[str]:
    """Count what is wrong with an answer that was not cut."""
    found = Counter[str]()
    choice, wish = body["tool_choice"], body.get("response_format", {})
    found["missing"] += choice != "auto" and (not calls or bool(text))
    found["unparsable"] += "<tool_call>" in text and not wish
    found["violations"] += len(calls) > 1 and (isinstance(choice, dict) or not body["parallel_tool_calls"])
    if wish and not calls:
        schema = wish.get("json_schema", {}).get("schema", {"type": "object"})
        found["violations"] += not jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    return found


def folded(events: str) -> dict[str, Any]:
    """Join a stream of one choice to its message, as OpenAI's clients do."""
    answer: dict[str, Any] = {"content": None, "finish_reason": None, "calls": []}
    for line in events.split("\n\n"):
        if not line.startswith("data: {"):
            continue
        piece = json.loads(line.removeprefix("data: "))["choices"][0]
        if piece["delta"].get("content"):
            answer["content"] = (answer["content"] or "") + piece["delta"]["content"]
        for call in piece["delta"].get("tool_calls") or []:
            if call["index"] == len(answer["calls"]):
                answer["calls"].append([call["function"]["name"], ""])
            answer["calls"][call["index"]][1] += call["function"]["arguments"]
        answer["finish_reason"] = piece["finish_reason"] or answer["finish_reason"]
    return answer


def _as_folded(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice["message"]
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return {
        "content": message["content"] or None,
        "finish_reason": choice["finish_reason"],
        "calls": [[function["name"], function["arguments"]] for function in functions],
    }


async def ask_all(llm: LLM, bodies: Sequence[dict[str, Any]], *, at_once: int = 8) -> Counter[str]:
    """Send each request twice, streamed and not; count what is wrong."""
    app, slots = create_app(llm, ServerConfig(log_level="error")), asyncio.Semaphore(at_once)
    transport = httpx.ASGITransport(app)

    async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Counter[str]:
        async with slots:
            answer = await client.post("/v1/chat/completions", json=body)
            stream = await client.post("/v1/chat/completions", json={**body, "stream": True})
        if answer.status_code != 200:
            print(answer.text, json.dumps(body), file=sys.stderr)
            return Counter(refused=1)
        choice = answer.json()["choices"][0]
        found = judge(body, choice)
        found["stream_differences"] += folded(stream.text) != _as_folded(choice)
        if found["violations"] + found["unparsable"] + found["missing"] + found["stream_differences"]:
            print(json.dumps(body), json.dumps(choice), dict(found), file=sys.stderr)
        return found

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://in-process", timeout=None) as client,
    ):
        return sum(await asyncio.gather(*(ask(client, body) for body in bodies)), Counter())


def random_llm(seed: int) -> LLM:
    """Return an LLM with the embedded model's tokenizer and a small decoder of random weights."""
    embedded = LLM(max_model_len=16)
    size = embedded.config.language.vocab_size
    language = LanguageConfig(64, 2, 4, 2, 64, size, max_position_embeddings=8192)
    config = replace(
        embedded.config, vision=VisionConfig(16, 1, 2, 32, image_size=56, patch_size=14), language=language
    )
    torch.manual_seed(seed)
    model = InternVL(config).float().requires_grad_(False).eval()
    prepare(model)  # so that other requests change no bit of an answer, as in a loaded model
    return LLM.from_parts(model, embedded.tokenizer, name="random", max_model_len=8192)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=("random", "embedded"), default="random")
    parser.add_argument("--max-tokens", type=int, default=700)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    llm = random_llm(options.seed) if options.model == "random" else LLM(max_model_len=8192)
    bodies = [random_request(rng, max_tokens=options.max_tokens) for _ in range(options.sets)]
    found = asyncio.run(ask_all(llm, bodies))
    names = ("calls", "cut", "refused", "missing", "unparsable", "violations", "stream_differences")
    result = {"model": options.model, "sets": options.sets} | {name: found[name] for name in names}
    print(json.dumps(result))
    return int(any(result[name] for name in names[2:]))


if __name__ == "__main__":
    sys.exit(main())
