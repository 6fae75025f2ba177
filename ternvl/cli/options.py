"""Options that the commands for questions share, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ternvl.limits import VideoLimits
from ternvl.setting import setting

Images = Annotated[
    list[Path] | None,
    typer.Option("--image", "-i", exists=True, dir_okay=False, readable=True, help="An image file (repeatable)."),
]
Videos = Annotated[
    list[Path] | None,
    typer.Option("--video", exists=True, dir_okay=False, readable=True, help="A video file (repeatable)."),
]
VideoFrames = Annotated[
    int, typer.Option("--video-frames", min=1, help="The number of frames that a video is sampled to.")
]

Lora = Annotated[
    str | None,
    typer.Option(
        "--lora", help="A LoRA adapter: a folder saved by PEFT, or french or inventory of the embedded model."
    ),
]
System = Annotated[str | None, typer.Option("--system", help="The system message; by default the checkpoint's own.")]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", exists=True, dir_okay=False, help="A file with the JSON Schema of the answers."),
]


@dataclass(frozen=True)
class AnswerConfig:
    """How answers are drawn. The fields are flags of the command line."""

    max_tokens: int = setting(1024, "The most tokens of an answer.")
    temperature: float | None = setting(
        None, "The sampling temperature; 0 always takes the likeliest token; by default the checkpoint's value."
    )
    seed: int | None = setting(None, "The seed of the answers, which makes them repeatable.")


def limits_of_own_videos(frames: int) -> VideoLimits:
    """Return the limits of a user's own files, which may take their time: the model's context is the only bound."""
    return VideoLimits(
        video_frames=frames,
        max_video_frames=max(frames, 1024),
        max_videos=1024,
        max_video_pixels=40_000_000,
        max_scanned_frames=10_000_000,
        video_decode_timeout=3600.0,
    )
