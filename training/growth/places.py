"""The forms in which places are written: InternVL3's grounding answers, and numbers that are one token each."""

from __future__ import annotations

from ternvl.tasks.prompts import OFFICIAL
from training.scenes import Box
from training.tasks import Turn

STEP = 0.02
"""Step of coordinates, as in `tasks.BOX_STEP`: its multiples are single tokens."""


def on_grid(fraction: float) -> float:
    """Round a place to a multiple of the step within the image."""
    return min(1.0, max(0.0, round(fraction / STEP) * STEP))


def box_text(box: Box) -> str:
    """Return a box in InternVL's grounding format: `[[x1, y1, x2, y2]]`, from 0 to 1000."""
    return "[[" + ", ".join(str(round(on_grid(edge) * 1000)) for edge in box) + "]]"


def grounding(task: str, phrase: str, box: Box) -> Turn:
    """Ask for the box of what a phrase describes, in the official words."""
    return Turn(task, OFFICIAL.ground.format(phrase=phrase), f"<ref>{phrase}</ref><box>{box_text(box)}</box>")
