"""What tasks return: values in pixels of the user's image.

Coordinates count from the upper left corner of the upright image, as viewers show it: an EXIF orientation is applied.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A pixel: `x` from 0 to the width less 1, `y` from 0 to the height less 1."""

    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of at least one pixel. `x2` and `y2` are beyond its last pixel, as `Image.crop` takes them."""

    x1: int
    y1: int
    x2: int
    y2: int
    label: str = ""
    """What the model calls it, or what it was asked for."""

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        return self.x1, self.y1, self.x2, self.y2

    @property
    def center(self) -> Point:
        """The pixel in the middle."""
        return Point((self.x1 + self.x2) // 2, (self.y1 + self.y2) // 2)

    @property
    def area(self) -> int:
        return (self.x2 - self.x1) * (self.y2 - self.y1)


@dataclass(frozen=True, slots=True)
class Action:
    """One action on a screen. `actions.ACTIONS` lists the names, and which fields each of them has."""

    name: str
    """Such as "pyautogui.click" or "mobile.swipe"."""
    call: str
    """The call as the model wrote it. `agent_step` takes it as history."""
    point: Point | None = None
    """Where it happens or begins; None for the present position of the pointer."""
    end: Point | None = None
    """Where a swipe or a drag ends."""
    text: str | None = None
    """What is typed, chosen or answered, the name of an application, a mouse button or a status."""
    keys: tuple[str, ...] = ()
    amount: float | None = None
    """Clicks, seconds, or pages to scroll: down and right are negative, as in pyautogui."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check of an inspection."""

    check: str
    passed: bool
    reason: str = ""
    """What the model sees that is wrong; empty if the check was passed."""
    boxes: tuple[Box, ...] = ()
    """Where it is; empty if the check was passed, was not to be located, or has no place in the image."""

    @property
    def box(self) -> Box | None:
        """The first of `boxes`."""
        return self.boxes[0] if self.boxes else None
