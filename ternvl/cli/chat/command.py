"""The commands `ternvl chat` and `ternvl run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternvl.cli.backend import load_model
from ternvl.cli.flags import Model, ModelOption, schema_text, with_flags
from ternvl.cli.options import AnswerConfig, Images, JsonSchema, Lora, System, VideoFrames, Videos, limits_of_own_videos
from ternvl.cli.signals import interruptible
from ternvl.config import LoadingConfig
from ternvl.errors import ConfigError
from ternvl.params import Grammar

if TYPE_CHECKING:
    from ternvl.cli.chat.conversation import ConsoleChat

_LOADING = LoadingConfig(quantization="auto")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the flags say of a conversation. It is checked before the model is loaded."""

    params: dict[str, Any]
    media: list[dict[str, Any]]
    lora: str | None
    system: str | None

    @classmethod
    def of(
        cls,
        answers: AnswerConfig,
        schema: Path | None,
        images: list[Path],
        videos: list[Path],
        lora: str | None,
        system: str | None,
    ) -> _Asked:
        from ternvl.cli.chat.attachments import image_part, video_part

        given = {"max_tokens": answers.max_tokens, "temperature": answers.temperature, "seed": answers.seed}
        form = None if schema is None else Grammar("json_schema", schema_text(schema), "json-schema")
        params = {name: value for name, value in {**given, "grammar": form}.items() if value is not None}
        return cls(params, [*map(image_part, images), *map(video_part, videos)], lora, system)

    def begun(self, model: str | None, loading: LoadingConfig, frames: int) -> ConsoleChat:
        """Load the model, and return a conversation with it."""
        from ternvl.cli.chat.attachments import LIMITS
        from ternvl.cli.chat.conversation import ConsoleChat

        llm = load_model(model, loading, images=LIMITS, videos=limits_of_own_videos(frames))
        if self.lora is not None:
            llm.load_adapter("adapter", Path(self.lora).expanduser())
        chat = ConsoleChat(llm, self.params, system=self.system, adapter=None if self.lora is None else "adapter")
        chat.media += self.media
        return chat


@with_flags
def chat(
    model: Model = None,
    image: Images = None,
    video: Videos = None,
    lora: Lora = None,
    system: System = None,
    json_schema: JsonSchema = None,
    frames: VideoFrames = 8,
    history: Annotated[
        bool,
        typer.Option("--history/--no-history", help="Keep what is typed in a terminal for later conversations."),
    ] = True,
    *,
    answers: AnswerConfig,
    loading: LoadingConfig = _LOADING,
) -> None:
    """Talk with a model in the terminal; /help lists the commands of a conversation."""
    conversation = _Asked.of(answers, json_schema, image or [], video or [], lora, system).begun(model, loading, frames)
    from ternvl.cli.chat.keyboard import history_path
    from ternvl.cli.chat.session import talk

    with interruptible():  # Ctrl-C ends an answer, not the conversation
        talk(conversation, history_path() if history else None)


@with_flags
def run(
    question: Annotated[str, typer.Argument(help="The question; - reads it from the standard input.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE...", help="Images; - reads one from the standard input.")
    ] = None,
    image: Images = None,
    video: Videos = None,
    model: ModelOption = None,
    lora: Lora = None,
    system: System = None,
    json_schema: JsonSchema = None,
    frames: VideoFrames = 8,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The form of the answer: text, or json with its token counts.")
    ] = "text",
    json: Annotated[bool, typer.Option("--json", help="The same as --output json.")] = False,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print the answer piece by piece; by default a text is, and JSON is not.",
            show_default=False,
        ),
    ] = None,
    *,
    answers: AnswerConfig,
    loading: LoadingConfig = _LOADING,
) -> None:
    """Ask one question, with or without images and videos, and print the answer."""
    from ternvl.cli.chat.single import OUTPUTS, answer, check_whole, read_question

    paths = [*(images or []), *(image or [])]
    if output not in OUTPUTS:
        raise ConfigError(f"--output is {output!r}, but must be text or json.")
    if [*map(str, paths), question].count("-") > 1:
        raise ConfigError("The standard input can be either the question or one image; name a file for the other.")
    as_json = json or output == "json"
    asked = _Asked.of(answers, json_schema, paths, video or [], lora, system)
    text = read_question() if question == "-" else question
    if not text.strip():
        raise ConfigError("The question is empty; write it as the first argument, or pipe it to `ternvl run -`.")
    conversation = asked.begun(model, loading, frames)
    answer(conversation, text, as_json=as_json, streams=not as_json if stream is None else stream)
    if json_schema is not None:
        check_whole(conversation)
