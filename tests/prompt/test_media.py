"""Prompts with videos: the same as with their frames as images, and what is refused before and after fetching."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ternvl.errors import ConfigError, ContextLengthError, MediaError, RequestError, VideoError
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.messages import ImageInput, Message, parse_messages, turn
from ternvl.prompt.parts import Sampling, VideoInput
from ternvl.types import Prompt
from tests.prompt.test_build import BUILDER, CONFIG, TOKENIZER, noise
from tests.prompt.videos import animation, official_indices, picture, uri, video
from tests.prompt.web import Server, send

GIF = animation([picture(number) for number in range(50)])
LIMITS = ImageLimits(allow_private_addresses=True)


def ask(*parts: Any, builder: PromptBuilder = BUILDER, **options: Any) -> Prompt:
    return builder.build(parse_messages([{"role": "user", "content": list(parts)}]), **options)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def clip(data: bytes = GIF, **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": uri(data, "image/gif"), **more}}


def same(first: Prompt, second: Prompt) -> bool:
    assert first.pixel_values is not None
    assert second.pixel_values is not None
    alike = (first.token_ids, first.images) == (second.token_ids, second.images)
    return alike and torch.equal(first.pixel_values, second.pixel_values)


def refused(*parts: Any, kind: type[RequestError] = RequestError, builder: PromptBuilder = BUILDER) -> Any:
    with pytest.raises(kind) as caught:
        ask(*parts, builder=builder)
    return caught.value


def test_a_video_is_its_frames_as_images_in_the_official_text_form() -> None:
    frames = [picture(number) for number in official_indices(8, 50)]
    prefix = "".join(f"Frame-{number}: <image>\n" for number in range(1, 9))
    question = f"{prefix}What happens?"
    images = tuple(ImageInput(frame, max_dynamic_patch=1) for frame in frames)
    expected = BUILDER.build([Message("user", question, images)])
    assert same(ask(clip(), text("What happens?")), expected)
    official = "<|im_start|>user\n" + question.replace("<image>", "<img><IMG_CONTEXT></img>") + "<|im_end|>\n"
    ids = tuple(TOKENIZER.full.encode(official, add_special_tokens=False).ids)
    assert any(expected.token_ids[start:][: len(ids)] == ids for start in range(len(expected.token_ids)))
    assert len({span.digest for span in expected.images}) == 8


def test_frames_come_near_the_pixels_of_a_compressed_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(video(50, crf="10"))
    compressed, exact = ask({"type": "video", "video": path}), ask(clip())
    assert compressed.token_ids == exact.token_ids
    assert compressed.pixel_values is not None
    assert exact.pixel_values is not None
    assert torch.abs(compressed.pixel_values - exact.pixel_values).mean() < 0.1


def test_frames_may_have_several_tiles() -> None:
    prompt = ask(clip(max_dynamic_patch=2, num_frames=3), max_dynamic_patch=12)
    assert [span.num_tiles for span in prompt.images] == [3, 3, 3]
    assert [span.num_tiles for span in ask(clip(num_frames=2), max_dynamic_patch=12).images] == [1, 1]


def test_the_number_of_frames_is_the_parts_or_the_requests_or_the_servers() -> None:
    small = PromptBuilder(CONFIG, TOKENIZER, videos=VideoLimits(video_frames=3, max_video_frames=9))

    def count(*parts: Any, **options: Any) -> int:
        return len(ask(*parts, builder=small, **options).images)

    assert count(clip()) == 3
    assert count(clip(), sampling=Sampling(5)) == 5
    assert count(clip(num_frames=7), sampling=Sampling(5)) == 7
    assert count(clip(), sampling=Sampling(fps=1.0)) == 5
    assert count(clip(), sampling=Sampling(4, 1.0)) == 4
    assert count(clip(fps=100)) == 9
    assert count(clip(), clip(fps=100)) == 3 + 4
    error = refused(clip(num_frames=10), builder=small)
    assert error.param == "messages[0].content[0].video_url.num_frames"
    assert "it must be from 1 to 9" in str(error)
    assert "asks for 12 frames of videos; a request may have 9" in str(refused(*[clip()] * 4, builder=small))
    assert "5 videos; a request may hold 4" in str(refused(*[clip(num_frames=1)] * 5, builder=small))
    with pytest.raises(RequestError) as caught:
        ask(clip(), builder=small, sampling=Sampling(0))
    assert caught.value.param == "media_io_kwargs.video.num_frames"


def test_images_and_videos_together_keep_their_pixels() -> None:
    red, blue = Image.new("RGB", (30, 30), "red"), Image.new("RGB", (30, 30), "blue")
    parts = [{"type": "image", "image": red}, clip(num_frames=2), {"type": "image", "image": blue}]
    in_order, placed = ask(*parts, text("Which?")), ask(*parts, text("Is <image> like <image>?"))
    digests = [span.digest for span in in_order.images]
    assert [span.digest for span in placed.images] == [digests[1], digests[2], digests[0], digests[3]]
    assert placed.pixel_values is not None
    assert in_order.pixel_values is not None
    assert torch.equal(placed.pixel_values, in_order.pixel_values[[1, 2, 0, 3]])


def test_a_list_of_frames_is_not_sampled() -> None:
    frames = [noise(40, 40, seed) for seed in range(3)]
    urls = [uri(animation([frame]), "image/gif") for frame in frames]
    shown = [Image.open(BytesIO(animation([frame]))).convert("RGB") for frame in frames]
    question = "Frame-1: <image>\nFrame-2: <image>\nFrame-3: <image>\nWhat?"
    images = tuple(ImageInput(frame, max_dynamic_patch=1) for frame in shown)
    expected = BUILDER.build([Message("user", question, images)])
    assert same(ask({"type": "video", "video": urls, "fps": 2}, text("What?")), expected)
    joined = "data:video/jpeg;base64," + ",".join(url.partition(",")[2] for url in urls)
    assert same(ask({"type": "video_url", "video_url": {"url": joined}}, text("What?")), expected)
    few = PromptBuilder(CONFIG, TOKENIZER, videos=VideoLimits(video_frames=1, max_video_frames=2))
    for part in ({"type": "video", "video": urls}, {"type": "video_url", "video_url": {"url": joined}}):
        assert "a list of frames is not sampled" in str(refused(part, builder=few))
    assert "a list of frames" in str(refused({"type": "video", "video": urls, "nframes": 3}))
    broken = refused({"type": "video", "video": [urls[0], "data:;base64,aGVsbG8="]}, kind=MediaError)
    assert broken.param == "messages[0].content[0].video"
    assert str(broken).startswith("messages[0].content[0].video[1] is not an image")


def test_a_video_that_cannot_be_used_is_named() -> None:
    error = refused(text("a"), clip(b"hello"), kind=VideoError)
    assert (error.param, error.code) == ("messages[0].content[1].video_url.url", "unsupported_video")
    assert str(error).startswith("messages[0].content[1].video_url.url is not a video in a supported format")
    with pytest.raises(VideoError, match=r"^messages\[0\] video 1 is empty"):
        BUILDER.build([Message("user", "", (VideoInput("data:;base64,"),))])
    with pytest.raises(RequestError, match="assistant message with a video"):
        BUILDER.build([Message("assistant", "", (VideoInput("data:;base64,"),))])


def test_videos_are_fetched_by_the_rules_of_images(server: Server, tmp_path: Path) -> None:
    server.answers["/a.gif"] = lambda handler: send(handler, body=GIF)
    part = {"type": "video", "video": server.url("/a.gif")}

    def code(part: dict[str, Any], **limits: Any) -> str:
        own = {name: limits.pop(name) for name in ("max_video_bytes",) if name in limits}
        builder = PromptBuilder(CONFIG, TOKENIZER, ImageLimits(**limits), videos=VideoLimits(**own))
        return str(refused(part, kind=VideoError, builder=builder).code)

    fetched = ask(part, builder=PromptBuilder(CONFIG, TOKENIZER, LIMITS))
    assert same(fetched, ask(clip()))
    assert server.requests[-1][1]["Accept"] == "video/*"
    assert code(part) == "video_not_fetched"
    assert code(part, allowed_media_domains=("example.com",)) == "video_not_allowed"
    assert code(part, allow_private_addresses=True, max_video_bytes=len(GIF) - 1) == "video_too_large"
    assert code(clip(), max_video_bytes=len(GIF) - 1) == "video_too_large"
    path = tmp_path / "media" / "a.gif"
    path.parent.mkdir()
    path.write_bytes(GIF)
    local = {"type": "video", "video": path.as_uri()}
    allowed = PromptBuilder(CONFIG, TOKENIZER, ImageLimits(allow_local_media=path.parent))
    assert same(ask(local, builder=allowed), ask(clip()))
    assert code(local) == "video_not_allowed"
    assert (
        code({"type": "video", "video": Path(__file__).as_uri()}, allow_local_media=path.parent) == "video_not_allowed"
    )


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_fetched(server: Server) -> None:
    builder = PromptBuilder(CONFIG, TOKENIZER, LIMITS)
    part = {"type": "video_url", "video_url": {"url": server.url("/a.gif"), "num_frames": 32}}
    needed = ask(clip(num_frames=32)).num_tokens
    with pytest.raises(ContextLengthError, match=r"at least \d+ tokens \(\d+ of text, 32 of images\)") as caught:
        ask(part, builder=builder, max_tokens=needed - 1)
    assert "(at least" in caught.value.anthropic_message
    assert server.requests == []
    assert ask(clip(num_frames=32), max_tokens=needed).num_image_tokens == 32


def test_a_frame_rate_is_known_to_be_too_much_once_the_video_is_read() -> None:
    needed = ask(clip(fps=2)).num_tokens
    assert ask(clip(fps=2), max_tokens=needed).num_tokens == needed
    with pytest.raises(ContextLengthError):
        ask(clip(fps=2), max_tokens=needed - 1)


def test_a_video_in_the_result_of_a_tool_stands_in_place() -> None:
    result = turn("tool", ["Seen:", VideoInput(uri(GIF), Sampling(2))], path="")
    words = TOKENIZER.decode(BUILDER.build([Message("user", "Look."), result]).token_ids)
    assert "Seen:\nFrame-1: \nFrame-2: \n</tool_response>" in words


@pytest.mark.parametrize(
    ("given", "placeholders"), [("<IMAGE_TOKEN> What?", 1), ("<IMAGE_TOKEN><IMAGE_TOKEN> What?", 2)]
)
def test_too_few_of_lmdeploys_placeholders_are_refused(given: str, placeholders: int) -> None:
    image = {"type": "image", "image": noise(9, 9)}
    assert len(ask(*[image] * placeholders, text(given)).images) == placeholders
    error = refused(*[image] * 3, text(given))
    assert error.param == "messages[0].content"
    assert f"3 images, but <IMAGE_TOKEN> only {placeholders} times" in str(error)
    in_place = parse_messages([{"role": "user", "content": [image, image, text(given)]}], image_placement="in_place")
    assert len(BUILDER.build(in_place).images) == 2


@pytest.mark.parametrize(
    "limits",
    [
        {"video_frames": 0},
        {"max_videos": -1},
        {"max_video_pixels": 0},
        {"video_decode_timeout": 0.0},
        {"video_fetch_timeout": float("inf")},
        {"video_frames": 40},
    ],
)
def test_invalid_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(limits))} is "):
        PromptBuilder(CONFIG, TOKENIZER, videos=VideoLimits(**limits))
