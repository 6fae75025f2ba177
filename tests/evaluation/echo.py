"""A backend that answers without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from ternvl.tasks import Reply, TaskRequest


@dataclass
class EchoBackend:
    """Answers with the question's last word, and fails at questions that say so."""

    delay: float = 0.0
    errors: dict[str, Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0
    is_closed: bool = False

    def answer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        raise AssertionError("an evaluation runs on an event loop")

    async def aanswer(self, requests: Sequence[TaskRequest]) -> list[Reply]:
        (request,) = requests
        question = str(request.parts[-1])
        self.asked.append(question)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.delay)
        self.running -= 1
        if question in self.errors:
            raise self.errors[question]
        return [Reply(question.split()[-1], question.startswith("long"))]

    def close(self) -> None:
        """Nothing to close."""

    async def aclose(self) -> None:
        self.is_closed = True
