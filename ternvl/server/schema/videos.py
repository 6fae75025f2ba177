"""The parts of messages that are videos, in the forms of several servers, and the field that says how they are sampled.

`video_url` and `media_io_kwargs` are vLLM's and LMDeploy's, `video` is Qwen's, `input_video` llama.cpp's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, Tag, WithJsonSchema, model_validator

from ternvl.prompt.parts import Sampling
from ternvl.server.schema.images import TileLimits, address
from ternvl.server.schema.types import STRING_OR_ARRAY, Integer, NonEmpty, Number, Schema, refuse


def _frame_rate(value: float) -> float:
    if value <= 0 and value != -1:
        raise refuse("", "must be above 0, or -1 for none")
    return value


VideoAddress = Annotated[str, address("https://example.com/video.mp4 or data:video/mp4;base64,AAAA")]
"""The URL of a video: `data:`, `http:`, `https:` or, if the server allows it, `file:`."""

FrameCount = Annotated[Integer, Field(ge=1)]
FrameRate = Annotated[
    Number,
    AfterValidator(_frame_rate),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": -1}]}),
]
"""Frames for each second of a video; -1 is vLLM's word for no such rate."""


class VideoUrl(TileLimits):
    """The URL of a video, and how it is sampled."""

    url: VideoAddress
    num_frames: FrameCount | None = None
    fps: FrameRate | None = None


class VideoUrlPart(Schema):
    """A video in a user message or in the result of a tool call. `fps` may stand here, where Qwen's clients have it."""

    type: Literal["video_url"]
    video_url: VideoUrl
    num_frames: FrameCount | None = None
    fps: FrameRate | None = None


class VideoPart(TileLimits):
    """A video as its URL, or as a list of the URLs of its frames, which are not sampled."""

    type: Literal["video"]
    video: Annotated[
        Annotated[VideoAddress, Tag("@string")]
        | Annotated[list[VideoAddress], Field(min_length=1, fail_fast=True), Tag("@array")],
        STRING_OR_ARRAY,
    ]
    nframes: FrameCount | None = None
    num_frames: FrameCount | None = None
    fps: FrameRate | None = None


class VideoData(TileLimits):
    """The bytes of a video in base64. Their own beginning tells their format."""

    data: NonEmpty
    format: str | None = None
    num_frames: FrameCount | None = None
    fps: FrameRate | None = None


class InputVideoPart(Schema):
    """A video as its bytes."""

    type: Literal["input_video"]
    input_video: VideoData


class VideoOptions(Schema):
    """How the videos of a request are sampled that say nothing of it. `fps` makes `num_frames` an upper bound."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    num_frames: FrameCount | None = None
    fps: FrameRate | None = None

    @model_validator(mode="after")
    def _has_no_other_settings(self) -> Self:
        self.refuse_extra("is not a setting that this model's videos have", *(self.model_extra or {}))
        return self


class MediaOptions(Schema):
    """How media are read, of which only videos have settings."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    video: VideoOptions | None = None

    @model_validator(mode="after")
    def _has_no_other_media(self) -> Self:
        self.refuse_extra("has no settings here", *(self.model_extra or {}))
        return self


class VideoFields(Schema):
    """The field of endpoints that take videos."""

    media_io_kwargs: MediaOptions | None = None

    @property
    def sampling(self) -> Sampling:
        """How videos are sampled that do not say so themselves."""
        options = (self.media_io_kwargs or MediaOptions()).video or VideoOptions()
        fps: Any = options.fps
        return Sampling(options.num_frames, None if fps in (None, -1) else float(fps))
