"""Chat Completions as the openai client sees them, over the real engine with a tiny random model."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from ternvl.llm import LLM
from ternvl.params import SamplingParams
from ternvl.prompt.messages import Message
from tests.fakes import tiny_tokenizer
from tests.server.fakes import scripted_llm, serving, tiny_llm
from tests.server.images import data_uri, file_server, png

HI: list[Any] = [{"role": "user", "content": "hi"}]


def about(url: str) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "?"}]}]


def test_the_answer_is_the_offline_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI, max_tokens=12, temperature=0)
    offline = tiny_llm().chat(HI, SamplingParams(temperature=0, max_tokens=12))[0]
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", offline.text)
    assert choice.finish_reason == offline.finish_reason.value
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == offline.prompt.num_tokens
    assert answer.usage.completion_tokens == len(offline.token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_is_the_answer_in_pieces(client: OpenAI, n: int) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 15, "seed": 7, "n": n}
    whole = client.chat.completions.create(**asked)
    texts = [""] * n
    reasons: list[str | None] = [None] * n
    begun: set[int] = set()
    for chunk in client.chat.completions.create(**asked, stream=True):
        assert chunk.object == "chat.completion.chunk"
        assert chunk.usage is None
        for choice in chunk.choices:
            assert (choice.delta.role == "assistant") == (choice.index not in begun)
            begun.add(choice.index)
            assert reasons[choice.index] is None, "nothing comes after the finish reason"
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == list(range(n))


def test_seeds(client: OpenAI) -> None:
    def ask(**fields: Any) -> list[str | None]:
        answer = client.chat.completions.create(model="tiny", messages=HI, max_tokens=16, **fields)
        return [choice.message.content for choice in answer.choices]

    three = ask(seed=5, n=3)
    assert len(set(three)) == 3
    assert three == ask(seed=5, n=3)
    assert three == ask(seed=5) + ask(seed=6) + ask(seed=7)
    assert ask() != ask()


@pytest.mark.parametrize("fields", [{"temperature": 1e-300}, {"top_p": 0}, {"temperature": 2, "top_p": 1e-300}])
def test_the_ends_of_the_ranges_leave_the_likeliest_token(client: OpenAI, fields: dict[str, float]) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 10}
    greedy, other = (client.chat.completions.create(**asked, **each) for each in ({"temperature": 0}, fields))
    assert other.choices[0].message.content == greedy.choices[0].message.content


def test_usage_of_a_stream_comes_last(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 5, "seed": 1, "n": 2}
    usage = client.chat.completions.create(**asked).usage
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == usage


def test_logprobs_spell_the_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=10, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    spelled = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert spelled.decode(errors="replace") == answer.choices[0].message.content
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert token.logprob <= 0


def test_stop_and_length(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0]
    text = whole.message.content or ""
    cut = client.chat.completions.create(**asked, stop=[text[4:6], "zzzz"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(text[4:6])], "stop")
    short = client.chat.completions.create(**{**asked, "max_tokens": 3, "max_completion_tokens": 9})
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3


def test_a_stop_token_ends_the_answer(client: OpenAI, llm: LLM) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 20, "temperature": 0}
    ids = tiny_llm().chat(HI, SamplingParams(temperature=0, max_tokens=20))[0].token_ids
    answer = client.chat.completions.create(**asked, extra_body={"stop_token_ids": [ids[6]]})
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == ids.index(ids[6])


@pytest.mark.parametrize(("detail", "num_tiles"), [("auto", 7), ("low", 1)])
def test_an_image_as_data_and_over_http_is_the_same(client: OpenAI, detail: str, num_tiles: int) -> None:
    data = png(size=(168, 112))
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    with file_server(data) as url:
        messages = [about(data_uri(data)), about(url)]
        for conversation in messages:
            conversation[0]["content"][0]["image_url"]["detail"] = detail
        inline, fetched = (client.chat.completions.create(**asked, messages=each) for each in messages)
    assert inline.choices[0].message.content == fetched.choices[0].message.content
    assert fetched.usage is not None
    details = fetched.usage.prompt_tokens_details
    assert details is not None
    assert details.model_dump()["image_tokens"] == num_tiles * 4
    assert details.cached_tokens == (fetched.usage.prompt_tokens - 1) // 16 * 16  # the other request's blocks


def test_the_number_of_tiles_is_a_field(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=about(data_uri(png(size=(168, 112)))),
        max_tokens=1,
        extra_body={"mm_processor_kwargs": {"max_dynamic_patch": 2}},
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.model_dump()["image_tokens"] == 3 * 4


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("data:image/png;base64,AAAA", 400),
        (data_uri(b"x" * 300_000), 413),
        ("http://127.0.0.1:9/none.png", 400),
        ("ftp://example.com/a.png", 400),
    ],
)
def test_a_bad_image_is_refused_in_plain_words(client: OpenAI, source: str, status: int) -> None:
    with pytest.raises(APIStatusError) as refusal:
        client.chat.completions.create(model="tiny", messages=about(source), stream=True)
    assert refusal.value.status_code == status
    assert refusal.value.param == "messages[0].content[0].image_url.url"
    assert "image" in refusal.value.message


def test_private_addresses_are_not_fetched_by_default() -> None:
    with file_server(png()) as image, serving(tiny_llm()) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json={"messages": about(image)})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].content[0].image_url.url"


def test_a_prompt_beyond_the_context(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "y" * 600}])
    assert refusal.value.code == "context_length_exceeded"
    assert "512" in refusal.value.message


def test_a_stop_token_beyond_the_vocabulary(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model="tiny", messages=HI, extra_body={"stop_token_ids": [1, 10**9]})
    assert refusal.value.param == "stop_token_ids[1]"


def test_model_names(client: OpenAI, http: httpx.Client) -> None:
    asked: dict[str, Any] = {"messages": HI, "max_tokens": 1}
    for name in ("tiny", "opengvlab-internvl3-1b-instruct"):
        assert client.chat.completions.create(model=name, **asked).model == "tiny"
        assert client.models.retrieve(name).id == "tiny"
    assert http.post("/v1/chat/completions", json=asked).json()["model"] == "tiny"
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(NotFoundError) as refusal:
        client.chat.completions.create(model="gpt", **asked)
    assert (refusal.value.param, refusal.value.code) == ("model", "model_not_found")
    with pytest.raises(NotFoundError):
        client.models.retrieve("gpt")


def test_concurrent_requests_do_not_mix(url: str) -> None:
    async def ask(client: AsyncOpenAI, number: int) -> str | None:
        answer = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"number {number}"}], max_tokens=10, temperature=0
        )
        return answer.choices[0].message.content

    async def ask_all() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, number % 6) for number in range(24)))

    answers = asyncio.run(ask_all())
    params = SamplingParams(temperature=0, max_tokens=10)
    alone = [tiny_llm().chat([{"role": "user", "content": f"number {number}"}], params)[0].text for number in range(6)]
    assert answers == alone * 4


def test_the_async_client_streams(url: str) -> None:
    async def stream() -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            chunks = await client.chat.completions.create(
                model="tiny", messages=HI, max_tokens=8, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(stream()) == tiny_llm().chat(HI, SamplingParams(temperature=0, max_tokens=8))[0].text


def test_the_final_message_is_gone_on_with() -> None:
    llm = scripted_llm("ok")
    turns = [Message("user", "hi"), Message("assistant", "So be")]
    body = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "So be"}]}
    with serving(llm) as url, httpx.Client(base_url=url) as http:
        for fields in ({"continue_final_message": True}, {"add_generation_prompt": False}, {}):
            assert http.post("/v1/chat/completions", json={**body, **fields}).status_code == 200
    continued, closed, asked = (prompt_of(llm, index) for index in range(3))
    assert continued.endswith("<|im_start|>assistant\nSo be")
    assert closed == continued + "<|im_end|>\n"
    assert asked == closed + "<|im_start|>assistant\n"
    assert list(llm.builder.build(turns).token_ids) == list(llm.engine.requests[2].prompt.token_ids)  # type: ignore[union-attr]


def prompt_of(llm: LLM, index: int) -> str:
    ids = llm.engine.requests[index].prompt.token_ids  # type: ignore[union-attr]
    return b"".join(map(tiny_tokenizer().token_bytes, ids)).decode()
