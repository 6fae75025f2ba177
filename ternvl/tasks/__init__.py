"""Typed tasks over a model: boxes, points, actions on screens, findings, objects, numbers, choices and texts.

`Tasks("http://127.0.0.1:8000/v1").ground("photo.jpg", "the red car")` asks a server, `Tasks(LLM()).ground(...)` a model
of this process. Each task asks in the model's official form and returns values in pixels of the user's image.
"""

from ternvl.errors import TaskError, UnparsableAnswer
from ternvl.tasks.client import AsyncTasks, Tasks, backend_of
from ternvl.tasks.draw import draw
from ternvl.tasks.parsing.actions import ACTIONS
from ternvl.tasks.pictures import ImageSource
from ternvl.tasks.prompts import OFFICIAL, PLAIN, Prompts
from ternvl.tasks.requests import Backend, Reply, TaskRequest
from ternvl.tasks.results import Action, Box, Finding, Point

__all__ = [
    "ACTIONS", "OFFICIAL", "PLAIN", "Action", "AsyncTasks", "Backend", "Box", "Finding", "ImageSource", "Point",
    "Prompts", "Reply", "TaskError", "TaskRequest", "Tasks", "UnparsableAnswer", "backend_of",
    "draw",
]  # fmt: skip
