"""Asks the embedded model every example of the documentation and writes what it answers.

    python scripts/examples.py

It writes `ternvl/server/docs/examples.json`, which `/openapi.json` and `/docs` show, `docs/endpoints.md`, in
`docs/lora.md` what the example of adapters prints, in `docs/server.md` the table of sampling parameters, in
`docs/tasks.md` what its examples print, and in `docs/evaluation.md` the tables of benchmarks and metrics.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from ternvl.config import ServerConfig
from ternvl.evaluation import BENCHMARKS, METRICS
from ternvl.llm import LLM
from ternvl.params import MAX_STOP_STRINGS, MAX_TOKEN_LIST, PARAMETERS, Kind, Parameter
from ternvl.server import bind, create_app
from ternvl.server.docs.operation import Operation
from ternvl.server.operations import OPERATIONS

ROOT = Path(__file__).resolve().parents[1]

QUESTION = "Name the european capitals"
CAPITALS = {"role": "user", "content": QUESTION}

REQUESTS: dict[str, Any] = {
    "/v1/chat/completions": {
        "messages": [{"role": "system", "content": "You are a helpful assistant."}, CAPITALS],
        "max_tokens": 200,
        "temperature": 0,
    },
    "/v1/chat/completions/render": {"messages": [CAPITALS], "cache_salt": "tenant"},
    "/v1/completions": {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "logprobs": 1},
    "/v1/completions/render": {"prompt": ["The capital of France is", "The capital of Spain is"]},
    "/v1/responses": {
        "instructions": "You are a helpful assistant.",
        "input": QUESTION,
        "max_output_tokens": 64,
        "temperature": 0,
    },
    "/v1/responses/input_tokens": {"input": QUESTION},
    "/v1/messages": {
        "system": "You are a helpful assistant.",
        "messages": [CAPITALS],
        "max_tokens": 64,
        "temperature": 0,
    },
    "/v1/messages/count_tokens": {"messages": [CAPITALS]},
    "/tokenize": {"prompt": QUESTION, "return_token_strs": True},
    "/detokenize": {"tokens": []},
}

NOTES = {
    "/v1/load_lora_adapter": """\
The body has `lora_name` and `lora_path`, a folder below `--lora-dir` or `--allowed-lora-dirs`. [lora.md](lora.md) also
says who may use this endpoint.""",
    "/v1/unload_lora_adapter": """\
The body has `lora_name`, and `abort` to end the requests that use the adapter; see [lora.md](lora.md).""",
    "/v1/upload_lora_adapter": "The body is a form with `lora_name` and the two files; see [lora.md](lora.md).",
    "/v1/chat/completions": "[server.md](server.md) describes fields, messages, answers and streams.",
    "/v1/chat/completions/render": """\
It takes the fields of `/v1/chat/completions`, and needs no room in the queue. `token_ids`, `mm_hashes`, `lora_id` and
`cache_salt` are those of the KV cache's events, so a router can say which blocks of the prompt a server has:
[routers.md](routers.md). `cache_salt` stands for the request's and that of its key.""",
    "/v1/completions": """\
`prompt` is a text, a list of texts, a list of token ids or a list of such lists. In a text, `<|im_start|>` and other
control tokens are plain characters; to send control tokens, send ids (`/tokenize` gives those of a conversation).
Answer j to prompt i has the index `i * n + j`. Without `max_tokens` an answer has 16 tokens. `suffix`, `tools` and a
`best_of` other than `n` are refused. All sampling fields and forms of Chat Completions are served.

`logprobs` lists every token of the answer, control tokens and the one that stopped it included. `top_logprobs` has the
`logprobs` most likely tokens and the token itself. `text_offset` counts characters of `text`. A token that is only part
of a character has OpenAI's name for it, such as `bytes:\\xe2\\x82`. `echo` puts the prompt before the answer and, with
`logprobs`, its tokens before those of the answer; the first token of a prompt has null. With `echo` or
`prompt_logprobs`, `max_tokens` may be 0: the prompt is scored and nothing is generated. `prompt_logprobs` is that of
[Chat Completions](server.md#log-probabilities), in each choice. Benchmarks of log likelihoods use both:
[clients.md](clients.md#benchmarks-with-lm-eval).""",
    "/v1/completions/render": """\
It takes the fields of `/v1/completions`, and needs no room in the queue. The answer is a list with an entry for each
prompt, in the form of `/v1/chat/completions/render`.""",
    "/v1/responses": """\
The server keeps no state: `input` holds the whole conversation, and `previous_response_id`, `conversation`,
`background` and `store: true` are refused. Items are messages (`input_text`, `input_image` with a URL,
`output_text`), `function_call`, `custom_tool_call` and their results. `tools` are functions, custom tools, whose calls
have any text as `input`, and namespaces of these; [tools.md](tools.md) says what becomes of other tools. The form of
the answer is given by `text.format` or by the fields of Chat Completions (`response_format`, `structured_outputs`,
`guided_...`). Sampling fields of Chat Completions that Responses lacks (`seed`, `stop`, `top_k`, ...) are served under
their names. A stream is a sequence of events with `sequence_number`, from `response.created` to `response.completed`
or `response.incomplete`; a failure is an event `error`.""",
    "/v1/responses/input_tokens": "It takes the fields of `/v1/responses`. Images are counted.",
    "/v1/messages": """\
`max_tokens` and `messages` are required. Blocks are `text`, `image` (`base64` or `url`), `tool_use` and
`tool_result` (text; with `is_error` it begins with "Error: "). If the last turn is the assistant's, the model
continues it. `output_config.format`, or `output_format` as before, is a JSON Schema that the answer must match; the
forms of Chat Completions are served, too. If `max_tokens` cuts a call, its `input` holds the part of the arguments
that was generated. `thinking` is refused unless disabled or adaptive; an `effort` other than `high`, the default, has
no effect and is named in `x-ternvl-ignored-fields`. Of `context_management`, `clear_thinking_20251015` is accepted,
because the prompt leaves earlier reasoning out anyway. `tools` have an `input_schema`; [tools.md](tools.md) says what
becomes of other tools. `cache_control` is accepted and has no effect, because the server caches prompts anyway.
Sampling fields of Chat Completions that Anthropic lacks are served under their names. The key may be sent as
`x-api-key`.
Errors have Anthropic's shape: `{"type": "error", "error": {"type", "message"}}`.""",
    "/v1/messages/count_tokens": "It takes the fields of `/v1/messages` without `max_tokens`. Images are counted.",
    "/tokenize": """\
The body has a text in `prompt`, or a conversation in `messages` with `tools`, `add_generation_prompt`,
`continue_final_message`, `mm_processor_kwargs` and `media_io_kwargs`. Images and videos count as the context tokens
that they become.""",
    "/detokenize": "All tokens are shown, including those that an answer never shows.",
    "/v1/models": "Each served name is a model of its own.",
    "/v1/models/{id}": """\
The id may contain slashes. `opengvlab-internvl3-1b-instruct`, `OpenGVLab/InternVL3-1B`,
`OpenGVLab/InternVL3-1B-Instruct`, `OpenGVLab/InternVL3-1B-hf` and the hub name that the model was loaded by all mean
the served model; the `model` of every answer says which model that is.""",
    "/ready": "The answer is 503 with the `reason` while the server stops or its queue is full.",
    "/health": """\
The status is `draining` while the server stops. The answer is 503 and `{"status": "stuck"}` if a step of the engine
does not end (`--stuck-timeout`).""",
    "/metrics": """\
[operations.md](operations.md#metrics) lists them. If there are keys, it needs one with the role metrics, unless
`--metrics-access` is `open`; with `--metrics-port` it is on that port alone: [security.md](security.md).""",
    "/debug/state": """\
JSON: counts of the engine, each running and waiting sequence (`id`, age, tokens, KV blocks, adapter), image workers,
connections, the stack of each thread, and settings without secrets; no prompt and no answer. Its fields may change in
any release. It needs a key with the role admin; a server without such a key answers 403 unless it has
`--debug-endpoints`. [operations.md](operations.md#a-server-is-slow) says how to read it.""",
    "/debug/profile": """\
The stacks of all threads, sampled 100 times a second for `?seconds=5` (0.1 to 60), one profile at a time; a second one
gets 409. `?format=collapsed`, the default, has a line for each stack, its milliseconds last, as flame graphs take it;
`?format=speedscope` is JSON for [speedscope](https://www.speedscope.app). It is for whom `/debug/state` is.""",
    "/openapi.json": "It is complete and has these examples.",
    "/docs": "It is a page of its own that loads nothing else.",
    "/schema/chat-completions.json": """\
A request that breaks it gets 400; [server.md](server.md) has the limits on sizes.""",
}

_PARAMETERS = re.compile(r"(<!-- parameters:begin -->\n).*?(<!-- parameters:end -->)", re.DOTALL)
_ADAPTERS = re.compile(
    r"(<!-- adapters:begin -->\n```python\n(.*?)```\n\n```text\n).*?(```\n<!-- adapters:end -->)", re.DOTALL
)


_PRINTED = re.compile(r"(```python\n(.*?)```\n)(\n```text\n.*?```\n)?", re.DOTALL)
_BENCHMARKS = re.compile(r"(<!-- benchmarks:begin -->\n).*?(<!-- benchmarks:end -->)", re.DOTALL)
_METRICS = re.compile(r"(<!-- metrics:begin -->\n).*?(<!-- metrics:end -->)", re.DOTALL)


def main() -> None:
    """Writes the files."""
    llm = LLM()
    REQUESTS["/detokenize"]["tokens"] = [llm.tokenizer.encode_text(letter)[0] for letter in "Paris"]
    config = ServerConfig(port=0, log_level="error")
    with bind(config) as sock:
        server = uvicorn.Server(uvicorn.Config(create_app(llm, config), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", timeout=120) as http:
            while not server.started:
                thread.join(0.05)
            examples = {operation.name: ask(http, operation) for operation in OPERATIONS}
        server.should_exit = True
        thread.join()
    examples = {name: example for name, example in examples.items() if example}
    text = json.dumps(examples, ensure_ascii=False, indent=1) + "\n"
    (ROOT / "ternvl/server/docs/examples.json").write_text(text, encoding="utf-8")
    (ROOT / "docs/endpoints.md").write_text(page(examples), encoding="utf-8")
    changes = {
        "docs/lora.md": with_adapters,
        "docs/server.md": with_parameters,
        "docs/tasks.md": with_outputs,
        "docs/evaluation.md": with_benchmarks,
    }
    for name, change in changes.items():
        document = ROOT / name
        document.write_text(change(document.read_text(encoding="utf-8")), encoding="utf-8")


def with_adapters(document: str) -> str:
    """Return the page of adapters with what its example prints."""
    example = _ADAPTERS.search(document)
    assert example is not None
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(example[2], {})
    return _ADAPTERS.sub(lambda found: found[1] + printed.getvalue() + found[3], document)


def with_outputs(document: str) -> str:
    """Return a page with what its examples print, which are run one after the other."""
    names: dict[str, Any] = {"__name__": "example"}

    def run(found: re.Match[str]) -> str:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(found[2], names)
        return found[1] + (f"\n```text\n{printed.getvalue()}```\n" if found[3] else "")

    return _PRINTED.sub(run, document)


def with_benchmarks(document: str) -> str:
    """Return the page of the evaluation with the tables of benchmarks and metrics."""
    rows = ["| Name | Metric | Tiles | Tokens | InternVL3-1B | Remark |", "|---|---|---|---|---|---|"]
    for name, each in BENCHMARKS.items():
        metric = each.metric if each.open_metric is None else f"{each.metric}, {each.open_metric}"
        score = "" if each.published is None else f"{each.published:g}"
        rows.append(f"| `{name}` | {metric} | {each.max_tiles} | {each.max_tokens} | {score} | {each.note} |")
    metrics = ["| Metric | What counts as right |", "|---|---|"]
    metrics += [f"| `{name}` | {metric.help} |" for name, metric in METRICS.items()]
    document = _BENCHMARKS.sub(lambda found: found[1] + "\n".join([*rows, ""]) + found[2], document)
    return _METRICS.sub(lambda found: found[1] + "\n".join([*metrics, ""]) + found[2], document)


def with_parameters(document: str) -> str:
    """Return the page of the server with the table of the sampling parameters that every endpoint takes."""
    rows = [f"| `{name}` | {value_of(row)} | {row.help} |" for name, row in PARAMETERS.items() if row.is_shared]
    table = "\n".join(["| Field | Value | Meaning |", "|---|---|---|", *rows, ""])
    return _PARAMETERS.sub(lambda found: found[1] + table + found[2], document)


def value_of(row: Parameter) -> str:
    """Return what the value of a parameter may be, in words."""
    match row.kind:
        case Kind.STRINGS:
            return f"string, or up to {MAX_STOP_STRINGS} strings, none of them empty"
        case Kind.TOKEN_IDS:
            return f"array of {'1' if row.low else 'up'} to {MAX_TOKEN_LIST:,} integers"
        case Kind.BIASES:
            return f"object of up to {MAX_TOKEN_LIST:,} entries: token id to number, {row.low} to {row.high}"
        case Kind.NUMBER | Kind.INTEGER if row.high < 2**31 - 1:
            return f"{row.kind.value}, {row.low} to {row.high}"
        case Kind.INTEGER:
            return "integer of 64 bits" if row.low == -(2**63) else f"integer, at least {row.low}"
    return row.kind.value


def ask(http: httpx.Client, operation: Operation) -> dict[str, Any]:
    """Return the example of an operation; empty if its answer is a document or if it is for administrators."""
    if operation.access == "admin":
        return {}
    if operation.request and operation.path not in REQUESTS:
        return {}
    if operation.request:
        body = REQUESTS[operation.path]
        answer = http.post(operation.path, json=body)
        return {"request": body, "answer": answer.raise_for_status().json()}
    if operation.media_type != "application/json" or operation.path.endswith(".json"):
        return {}
    return {"answer": http.get(operation.path.replace("{id}", "ternvl-nano")).raise_for_status().json()}


def page(examples: dict[str, Any]) -> str:
    """Return the page of the documentation that shows all endpoints."""
    text = (
        "# The endpoints\n\n`python scripts/examples.py` writes this page. Every answer below is what `ternvl serve` "
        "answered with the embedded\nmodel. A running server shows the same at `/docs`.\n"
    )
    for operation in OPERATIONS:
        text += f"\n## `{operation.name}`\n\n{operation.summary}"
        text += f"\n\n{NOTES[operation.path]}\n" if operation.path in NOTES else "\n"
        example = examples.get(operation.name)
        if example:
            text += f"\n```sh\n{curl(operation, example)}\n```\n\n```json\n{shown(example['answer'])}\n```\n"
    return text


def curl(operation: Operation, example: dict[str, Any]) -> str:
    """Return the command that sends the example."""
    url = "http://127.0.0.1:8000" + operation.path.replace("{id}", "ternvl-nano")
    if "request" not in example:
        return f"curl {url}"
    return f"curl {url} -H 'Content-Type: application/json' -d '{shown(example['request'])}'"


def shown(value: Any, indent: int = 0) -> str:
    """Return JSON in as few lines as a width of 110 columns allows."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= 110 or not isinstance(value, dict | list) or not value:
        return line
    pad, end = " " * (indent + 2), " " * indent
    if isinstance(value, dict):
        items = [f"{pad}{json.dumps(name)}: {shown(item, indent + 2)}" for name, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + shown(item, indent + 2) for item in value) + f"\n{end}]"


if __name__ == "__main__":
    main()
