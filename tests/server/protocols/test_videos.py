"""Videos over HTTP: the shapes of other servers' clients, how they are sampled, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ternvl.limits import ImageLimits, VideoLimits
from ternvl.llm import LLM
from ternvl.prompt.video import process
from tests.fakes import tiny_tokenizer
from tests.prompt.videos import animation, official_indices, picture, sound, uri, video
from tests.server.fakes import ScriptedEngine, scripted_llm, serving
from tests.server.images import data_uri, png

CHAT = "/v1/chat/completions"
GIF = animation([picture(number) for number in range(40)])
SMALL = data_uri(png("green", (20, 20)))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("media")
    (folder / "clip.mp4").write_bytes(video(40))
    limits = ImageLimits(allow_local_media=folder, max_images=64)
    return scripted_llm("ok", limits=limits, videos=VideoLimits(max_video_bytes=200_000, max_scanned_frames=100))


@pytest.fixture(scope="module")
def client(llm: LLM) -> Iterator[httpx.Client]:
    with serving(llm, strict=True) as url, httpx.Client(base_url=url, timeout=110) as client:
        yield client


def message(*parts: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
    }


def prompt_of(llm: LLM, client: httpx.Client, *parts: Any, **fields: Any) -> str:
    """The turn of the user as text, with `{n}` for each image of n tiles. `/tokenize` counts the same tokens."""
    body = {"messages": [message(*parts)], **fields}
    response = client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    assert isinstance(llm.engine, ScriptedEngine)
    prompt = llm.engine.requests[-1].prompt
    usage = response.json()["usage"]["prompt_tokens_details"]
    assert usage["image_tokens"] == prompt.num_image_tokens == sum(image.num_tokens for image in prompt.images)
    names = ("messages", "media_io_kwargs", "mm_processor_kwargs", "image_placement")
    shared = {name: body[name] for name in names if name in body}
    assert tuple(client.post("/tokenize", json=shared).json()["tokens"]) == prompt.token_ids
    text = b"".join(map(tiny_tokenizer().token_bytes, prompt.token_ids)).decode()
    for image in prompt.images:
        text = text.replace("<img>" + "<IMG_CONTEXT>" * image.num_tokens + "</img>", f"{{{image.num_tiles}}}", 1)
    return text.partition("<|im_start|>user\n")[2].removesuffix("<|im_end|>\n<|im_start|>assistant\n")


def frames(count: int, tiles: int = 1) -> str:
    return "".join(f"Frame-{number}: {{{tiles}}}\n" for number in range(1, count + 1))


def url(data: bytes = GIF, **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": uri(data), **more}}


def error_of(client: httpx.Client, *parts: Any, **fields: Any) -> tuple[int, dict[str, Any]]:
    response = client.post(CHAT, json={"messages": [message(*parts)], **fields})
    return response.status_code, response.json()["error"]


def test_the_shapes_of_other_servers_clients(llm: LLM, client: httpx.Client) -> None:
    """vLLM, LMDeploy; Alibaba Cloud's OpenAI-compatible API; qwen-vl-utils; llama.cpp."""
    vllm = {"media_io_kwargs": {"video": {"num_frames": 4, "fps": -1}}}
    assert prompt_of(llm, client, "What?", url(), **vllm) == frames(4) + "What?"
    assert prompt_of(llm, client, url(), "What?", media_io_kwargs={"video": {"fps": 1.0}}) == frames(4) + "What?"
    assert prompt_of(llm, client, {**url(), "fps": 2}, "What?") == frames(8) + "What?"
    listed = {"type": "video", "video": [SMALL, SMALL, SMALL], "fps": 2}
    assert prompt_of(llm, client, listed, "What?") == frames(3) + "What?"
    assert prompt_of(llm, client, {"type": "video", "video": uri(GIF), "nframes": 6}, "What?") == frames(6) + "What?"
    data = {"type": "input_video", "input_video": {"data": base64.b64encode(GIF).decode(), "format": "gif"}}
    assert prompt_of(llm, client, data, "What?") == frames(8) + "What?"
    joined = "data:video/jpeg;base64," + ",".join([SMALL.partition(",")[2]] * 2)
    assert prompt_of(llm, client, {"type": "video_url", "video_url": {"url": joined}}, "?") == frames(2) + "?"


def test_an_evaluation_adapters_requests(llm: LLM, client: httpx.Client) -> None:
    """VLMEvalKit's LMDeploy wrapper: frames as images with the InternVL3 adapter, else a data: or file: URL."""

    def ask(*parts: Any) -> str:
        return prompt_of(llm, client, *parts, model="tiny", max_tokens=16384, n=1, temperature=0.0)

    question = "".join(f"Frame-{number}: <IMAGE_TOKEN>\n" for number in range(1, 4)) + "\nWhat happens?"
    image = {"type": "image_url", "image_url": {"url": data_uri(png("red", (220, 110))), "max_dynamic_patch": 1}}
    assert ask(*[image] * 3, question) == frames(3) + "\nWhat happens?"
    mp4 = {"type": "video_url", "video_url": {"url": uri(video(40)), "num_frames": 3}}
    assert ask(mp4, "What happens?") == frames(3) + "What happens?"
    folder = llm.builder.limits.allow_local_media
    assert folder is not None
    local = {"type": "video_url", "video_url": {"url": f"file://{(folder / 'clip.mp4').resolve()}"}}
    assert ask("What happens?", local) == frames(8) + "What happens?"


def test_frames_are_the_sampled_ones_and_use_the_cache_of_images(llm: LLM, client: httpx.Client) -> None:
    def digests(*parts: Any) -> list[bytes]:
        prompt_of(llm, client, *parts)
        assert isinstance(llm.engine, ScriptedEngine)
        return [image.digest for image in llm.engine.requests[-1].prompt.images]

    pictures = [picture(number) for number in official_indices(5, 40)]
    images = [
        {"type": "image_url", "image_url": {"url": uri(animation([each]), "image/gif"), "max_dynamic_patch": 1}}
        for each in pictures
    ]
    assert digests(url(num_frames=5)) == digests(*images)


def test_frames_may_have_several_tiles(llm: LLM, client: httpx.Client) -> None:
    assert prompt_of(llm, client, url(num_frames=2, max_dynamic_patch=2), "?") == frames(2, 3) + "?"
    many = {"mm_processor_kwargs": {"max_dynamic_patch": 12}}
    assert prompt_of(llm, client, url(num_frames=2), "?", **many) == frames(2) + "?"


def test_videos_stand_where_they_are_asked_to(llm: LLM, client: httpx.Client) -> None:
    image = {"type": "image_url", "image_url": {"url": SMALL}}
    short = url(num_frames=1)
    assert prompt_of(llm, client, "One", short, "two") == "Frame-1: {1}\nOne\ntwo"
    assert prompt_of(llm, client, "One", short, "two", image_placement="in_place") == "One\nFrame-1: {1}\ntwo"
    assert prompt_of(llm, client, image, short, "At <image>") == "Frame-1: {1}\nAt {1}"


def test_a_tools_result_may_be_a_video(llm: LLM, client: httpx.Client) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [url(num_frames=2)]},
    ]
    assert client.post(CHAT, json={"messages": turns}).status_code == 200
    assert isinstance(llm.engine, ScriptedEngine)
    assert len(llm.engine.requests[-1].prompt.images) == 2


def test_what_is_refused_names_the_field_and_the_reason(client: httpx.Client) -> None:
    where = "messages[0].content[0].video_url"
    for data, status, code, says in (
        (sound(), 400, "invalid_video", "holds no video"),
        (b"hello", 400, "unsupported_video", "not a video in a supported format"),
        (video(40)[:500], 400, "invalid_video", "its data is damaged"),
        (video(101), 413, "video_too_large", "more than 100 frames"),
        (bytes(200_001), 413, "video_too_large", "larger than 200000 bytes"),
    ):
        given, error = error_of(client, url(data))
        assert (given, error["code"], error["param"]) == (status, code, f"{where}.url")
        assert says in error["message"]
    status, error = error_of(client, {"type": "video_url", "video_url": {"url": "http://127.0.0.1:1/a.mp4"}})
    assert (status, error["code"]) == (400, "video_not_fetched")
    status, error = error_of(client, {"type": "video_url", "video_url": {"url": Path(__file__).as_uri()}})
    assert (status, error["code"]) == (400, "video_not_allowed")
    status, error = error_of(client, url(num_frames=33))
    assert (status, error["param"]) == (400, f"{where}.num_frames")
    status, error = error_of(client, url(), media_io_kwargs={"video": {"num_frames": 33}})
    assert (status, error["param"]) == (400, "media_io_kwargs.video.num_frames")
    assert "from 1 to 32" in error["message"]
    response = client.post("/tokenize", json={"messages": [message(url(num_frames=33))]})
    assert response.status_code == 400


def test_a_server_without_pyav_says_what_to_install(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, error = error_of(client, url(video(3)))
    assert (status, error["code"]) == (400, "video_not_supported")
    assert "pip install 'ternvl[video]'" in error["message"]
    assert client.post(CHAT, json={"messages": [message(url(GIF))]}).status_code == 200
    assert process.REASONS["not_installed"] in error["message"]


def test_other_endpoints_have_no_videos(client: httpx.Client) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_video", "video_url": uri(GIF)}]}]},
        "/v1/messages": {"messages": [{"role": "user", "content": [{"type": "video", "source": {}}]}], "max_tokens": 9},
    }
    for path, body in bodies.items():
        assert client.post(path, json=body).status_code == 400
    media = {"media_io_kwargs": {"video": {"num_frames": 3}}}
    assert client.post("/v1/responses", json={"input": "hi", **media}).json()["error"]["param"] == "media_io_kwargs"
