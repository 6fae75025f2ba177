"""`ternvl task`: the tasks of `ternvl.tasks` in the terminal, over a server or in this process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternvl.cli.backend import BackendConfig
from ternvl.cli.flags import help_alone, schema_text, with_flags
from ternvl.errors import ConfigError
from ternvl.setting import setting

if TYPE_CHECKING:
    from ternvl.tasks import Prompts, Tasks

task = help_alone(typer.Typer(help="Find, count, read, check, compare or click: typed results, in pixels."))

ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="A path or a URL.")]
ImagesArgument = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Paths or URLs.")]
QuestionOption = Annotated[
    str | None, typer.Option("--question", "-q", help="The question; by default the task's own.")
]


@dataclass(frozen=True, slots=True)
class TaskConfig(BackendConfig):
    """Who answers a task, and how its result is shown. The fields are flags of the command line."""

    prompts: str | None = setting(
        None, "The form of the questions: official, or plain for the embedded model; by default what suits the model."
    )
    max_tiles: int | None = setting(None, "The most tiles that an image is cut into; by default the task's number.")
    max_tokens: int = setting(1024, "The most tokens of an answer.")
    output: str = setting("text", "The form of the result: text or json.")
    draw: Path | None = setting(None, "An image file to draw the result into.")


def _command(name: str, example: str) -> Callable[[Callable[..., None]], None]:
    """Register a command, whose example its help shows."""

    def register(command: Callable[..., None]) -> None:
        task.command(name, epilog=f"Example: [bold]ternvl task {name} {example}[/bold]")(with_flags(command))

    return register


@_command("ground", "photo.jpg 'the red car' --draw found.png")
def _ground(image: ImageArgument, phrase: Annotated[str, typer.Argument()], *, task: TaskConfig) -> None:
    """Find what a phrase describes: boxes as x1 y1 x2 y2."""
    _run(task, image, lambda tasks, tiles: tasks.ground(image, phrase, **tiles))


@_command("detect", "photo.jpg car person --output json")
def _detect(
    image: ImageArgument,
    labels: Annotated[list[str] | None, typer.Argument(help="What to find; by default all objects.")] = None,
    *,
    task: TaskConfig,
) -> None:
    """Find objects by their names, or all of them: boxes as x1 y1 x2 y2."""
    _run(task, image, lambda tasks, tiles: tasks.detect(image, labels or (), **tiles))


@_command("point", "photo.jpg 'the door handle'")
def _point(image: ImageArgument, what: Annotated[str, typer.Argument()], *, task: TaskConfig) -> None:
    """Find the pixel in the middle of something: x y."""
    _run(task, image, lambda tasks, tiles: tasks.point(image, what, **tiles))


@_command("click", "screenshot.png 'open the settings'")
def _click(image: ImageArgument, instruction: Annotated[str, typer.Argument()], *, task: TaskConfig) -> None:
    """Find where to click on a screenshot."""
    _run(task, image, lambda tasks, tiles: tasks.click(image, instruction, **tiles))


@_command("agent-step", "screenshot.png 'send the mail' --platform mobile")
def _agent_step(
    image: ImageArgument,
    goal: Annotated[str, typer.Argument()],
    history: Annotated[list[str] | None, typer.Option("--history", help="An earlier action (repeatable).")] = None,
    platform: Annotated[str, typer.Option("--platform", help="The kind of screen: desktop or mobile.")] = "desktop",
    *,
    task: TaskConfig,
) -> None:
    """Choose the next actions towards a goal on a screen."""
    _run(task, image, lambda tasks, tiles: tasks.agent_step(image, goal, history or (), platform=platform, **tiles))  # type: ignore[arg-type]


@_command("inspect", "part.jpg 'Is the label straight?' 'Are all screws there?' --reference good.jpg")
def _inspect(
    image: ImageArgument,
    checks: Annotated[list[str], typer.Argument(help="Questions whose answer is yes for a good product.")],
    reference: Annotated[list[str] | None, typer.Option("--reference", help="A normal sample (repeatable).")] = None,
    locate: Annotated[bool, typer.Option("--locate/--no-locate", help="Ask where a defect is.")] = True,
    *,
    task: TaskConfig,
) -> None:
    """Check a product; the exit status is 1 if a check fails."""
    found = _run(
        task, image, lambda tasks, tiles: tasks.inspect(image, checks, reference or (), locate=locate, **tiles)
    )
    raise typer.Exit(0 if all(finding.passed for finding in found) else 1)


@_command("read", "invoice.png schema.json")
def _read(
    image: ImageArgument,
    schema: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file with a JSON Schema.")],
    question: QuestionOption = None,
    *,
    task: TaskConfig,
) -> None:
    """Read an image into JSON that matches a schema."""
    _run(task, image, lambda tasks, tiles: tasks.read(image, json.loads(schema_text(schema)), question, **tiles))


@_command("text", "sign.jpg")
def _text(image: ImageArgument, *, task: TaskConfig) -> None:
    """Read the text that an image shows."""
    _run(task, image, lambda tasks, tiles: tasks.text(image, **tiles))


@_command("caption", "photo.jpg")
def _caption(image: ImageArgument, *, task: TaskConfig) -> None:
    """Describe an image in one sentence."""
    _run(task, image, lambda tasks, tiles: tasks.caption(image, **tiles))


@_command("count", "photo.jpg 'red cars'")
def _count(image: ImageArgument, what: Annotated[str, typer.Argument(help="A plural.")], *, task: TaskConfig) -> None:
    """Count something."""
    _run(task, image, lambda tasks, tiles: tasks.count(image, what, **tiles))


@_command("choose", "photo.jpg 'What season is it?' spring summer autumn winter")
def _choose(
    image: ImageArgument,
    question: Annotated[str, typer.Argument()],
    options: Annotated[list[str], typer.Argument()],
    *,
    task: TaskConfig,
) -> None:
    """Choose one of several answers to a question."""
    _run(task, image, lambda tasks, tiles: tasks.choose(image, question, options, **tiles))


@_command("yes-no", "photo.jpg 'Is the door open?'")
def _yes_no(image: ImageArgument, question: Annotated[str, typer.Argument()], *, task: TaskConfig) -> None:
    """Answer a question with yes or no."""
    _run(task, image, lambda tasks, tiles: tasks.yes_no(image, question, **tiles))


@_command("compare", "before.jpg after.jpg")
def _compare(images: ImagesArgument, question: QuestionOption = None, *, task: TaskConfig) -> None:
    """Say what differs between images, or answer a question about them."""
    _run(task, None, lambda tasks, tiles: tasks.compare(images, question, **tiles))


@_command("views", "front.jpg side.jpg --question 'What is behind the chair?'")
def _views(
    images: ImagesArgument,
    question: Annotated[str, typer.Option("--question", "-q", help="The question.")],
    *,
    task: TaskConfig,
) -> None:
    """Answer a question about one scene, given several views of it."""
    _run(task, None, lambda tasks, tiles: tasks.views(images, question, **tiles))


@_command("video", "clip.mp4 'What happens?' --frames 16")
def _video(
    path: Annotated[Path, typer.Argument(help="A GIF; with PyAV installed, any video.")],
    question: Annotated[str, typer.Argument()],
    frames: Annotated[int, typer.Option("--frames", help="The number of frames that the model sees.")] = 8,
    *,
    task: TaskConfig,
) -> None:
    """Answer a question about a video."""
    _run(task, None, lambda tasks, tiles: tasks.video(path, question, frames, **tiles))


def _run(config: TaskConfig, image: str | None, ask: Callable[[Tasks, dict[str, Any]], Any]) -> Any:
    """Run a task, print its result, draw it if that is asked for, and return it."""
    if config.output not in ("text", "json"):
        raise ConfigError(f"--output is {config.output!r}, but must be text or json.")
    if config.draw is not None and image is None:
        raise ConfigError("--draw is for tasks whose results have places in one image.")
    from ternvl.tasks import Tasks, draw

    with Tasks(**config.client(), prompts=_prompts(config.prompts), max_tokens=config.max_tokens) as tasks:
        result = ask(tasks, {} if config.max_tiles is None else {"max_tiles": config.max_tiles})
    typer.echo(_as_json(result) if config.output == "json" else _as_text(result))
    if config.draw is not None and image is not None:
        _save(draw(image, result), config.draw)
    return result


def _prompts(name: str | None) -> Prompts | None:
    from ternvl.tasks import OFFICIAL, PLAIN

    known = {"official": OFFICIAL, "plain": PLAIN}
    if name is not None and name not in known:
        raise ConfigError(f"--prompts is {name!r}, but must be official or plain.")
    return None if name is None else known[name]


def _save(picture: Any, path: Path) -> None:
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The drawing {path} cannot be written: {error}.") from error


def _as_json(result: Any) -> str:
    return json.dumps(result, default=dataclasses.asdict, indent=2, ensure_ascii=False)


def _as_text(result: Any) -> str:
    from ternvl.tasks import Action, Box, Finding, Point

    match result:
        case tuple():
            return "\n".join(map(_as_text, result))
        case Box():
            return f"{result.x1} {result.y1} {result.x2} {result.y2}  {result.label}".rstrip()
        case Point():
            return f"{result.x} {result.y}"
        case Action():
            places = [f"{place.x} {place.y}" for place in (result.point, result.end) if place]
            return "  ".join([result.call, *places])
        case Finding():
            found = [f"  {_as_text(Box(*box.xyxy))}" for box in result.boxes]
            words = f"pass  {result.check}" if result.passed else f"FAIL  {result.check}  {result.reason}"
            return "\n".join([words, *found])
        case bool():
            return "yes" if result else "no"
    return result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False)
