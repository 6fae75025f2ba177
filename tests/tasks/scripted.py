"""A backend that answers what it is told, and the calls of every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ternvl.tasks import Reply, TaskRequest, Tasks


@dataclass
class ScriptedBackend:
    """Answers every request with the same text, or with the next of several."""

    texts: str | Sequence[str]
    is_cut: bool = False
    requests: list[TaskRequest] = field(default_factory=list)

    def answer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        replies = []
        for request in requests:
            text = self.texts if isinstance(self.texts, str) else self.texts[len(self.requests)]
            self.requests.append(request)
            replies.append(Reply(text, self.is_cut))
        return replies

    async def aanswer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        return self.answer(requests)

    def close(self) -> None:
        """Nothing to close."""

    async def aclose(self) -> None:
        """Nothing to close."""


def picture(width: int = 64, height: int = 48) -> Image.Image:
    return Image.new("RGB", (width, height), "gray")


SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}
OPTIONS = ("red circle", "blue square", "green star")

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "ground": lambda tasks, image: tasks.ground(image, "the red circle"),
    "detect": lambda tasks, image: tasks.detect(image, ["circle", "square"]),
    "detect all": lambda tasks, image: tasks.detect(image),
    "point": lambda tasks, image: tasks.point(image, "the red circle"),
    "click": lambda tasks, image: tasks.click(image, "open the menu"),
    "agent_step": lambda tasks, image: tasks.agent_step(image, "send a mail", ["pyautogui.click(x=0.1, y=0.2)"]),
    "inspect": lambda tasks, image: tasks.inspect(image, ["Is it round?", "Is it red?"], [image]),
    "read": lambda tasks, image: tasks.read(image, SCHEMA),
    "text": lambda tasks, image: tasks.text(image),
    "caption": lambda tasks, image: tasks.caption(image),
    "count": lambda tasks, image: tasks.count(image, "circles"),
    "choose": lambda tasks, image: tasks.choose(image, "What is it?", OPTIONS),
    "yes_no": lambda tasks, image: tasks.yes_no(image, "Is it red?"),
    "compare": lambda tasks, image: tasks.compare([image, image]),
    "views": lambda tasks, image: tasks.views([image, image], "What is it?"),
}
"""One call of each task but `video`, which needs a file."""


def result_of(task: str, *texts: str, size: tuple[int, int] = (64, 48)) -> Any:
    """What a task returns for an answer, or for several in turn."""
    return CALLS[task](Tasks(ScriptedBackend(texts[0] if len(texts) == 1 else texts)), picture(*size))
