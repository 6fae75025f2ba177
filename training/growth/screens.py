"""Synthetic screens: buttons, fields, checkboxes and menus, and what to click on them.

A screen is a `Scene` whose items are widgets; line i is the label of item i.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

from ternvl.tasks.prompts import OFFICIAL
from training import tasks
from training.growth.places import grounding, on_grid
from training.scenes import (
    BACKGROUNDS,
    COLORS,
    NUM_FONTS,
    Box,
    Item,
    Scene,
    TextLine,
    draw_line,
    font,
    random_canvas,
    shade,
    visible_colors,
    with_noise,
)
from training.tasks import Turn

WIDGETS = ("button", "button", "field", "checkbox", "menu")
"""Kinds of widgets; a button is as likely as two others."""
LABELS = (
    "OK", "NO", "YES", "GO", "OPEN", "EXIT", "PLAY", "STOP", "NEXT", "BACK", "HOME", "HELP", "MENU", "NEW", "END",
    "START", "ENTER", "PUSH", "PULL", "POST", "TEST", "TEXT", "DATA", "CODE", "MAP", "TIME", "WORK", "FREE", "INPUT",
)  # fmt: skip
"""Labels as on real screens; they are among `tasks.WORDS`, so none is held out."""
PITCH = 0.128
"""The least distance of the centres of two characters, as in `scenes.random_line`."""
DARK = ("red", "green", "blue", "purple", "brown", "black")
_PADDING, _SQUARE, _ARROW = 0.04, 0.12, 0.12
_SIGNS = {"field": _PADDING, "button": _PADDING, "checkbox": _SQUARE + 0.05, "menu": _PADDING}
"""What stands left of a label, as a fraction of the width."""


@dataclass(frozen=True, slots=True)
class Style:
    """What the widgets of one screen have in common."""

    width: int
    height: int
    background: tuple[int, int, int]
    font: int


def random_screen(rng: random.Random, *, single_tile: bool = True, held_out: bool = False) -> Scene:
    """Generate a screen of one to four rows. With `held_out`, all labels are strings that training never shows."""
    width, height = random_canvas(rng, single_tile=single_tile)
    style = Style(width, height, rng.choice(BACKGROUNDS), rng.randrange(NUM_FONTS))
    num_rows = rng.choice((1, 2, 2, 3, 3, 4))
    items: list[Item] = []
    lines: list[TextLine] = []
    for row in range(num_rows):
        x = 0.02
        middle = 0.02 + 0.96 * (row + 0.5) / num_rows
        for _ in range(rng.choice((1, 1, 2))):
            item, line = _widget(rng, style, x, middle, 0.9 / num_rows, _label(rng, lines, held_out=held_out))
            space = 0.98 - item.box[2]
            if space < 0:
                break  # the widget does not fit beside the first
            shift = rng.uniform(0, space)
            items.append(_moved_item(item, shift))
            lines.append(_moved_line(line, shift))
            x = items[-1].box[2] + 0.04
    if not items:  # the only label was too wide
        return random_screen(rng, single_tile=single_tile, held_out=held_out)
    return Scene(width, height, style.background, tuple(items), tuple(lines), rng.getrandbits(32))


def _label(rng: random.Random, others: list[TextLine], *, held_out: bool) -> str:
    """Draw a label that no other widget has."""
    while True:
        if held_out or rng.random() < 0.3:
            text = tasks.random_word(rng, tasks.random_string, held_out=held_out)
        else:
            text = rng.choice(LABELS)
        if all(text != line.string for line in others):
            return text


def _widget(rng: random.Random, style: Style, x: float, y: float, room: float, text: str) -> tuple[Item, TextLine]:
    """Return a widget that begins at `x`, around the height `y`, and is at most `room` high."""
    kind = rng.choice(WIDGETS)
    size = rng.uniform(0.14, 0.19)
    half = min(rng.uniform(0.1, 0.15), room / 2)
    paint = "white" if kind in ("field", "checkbox") else rng.choice(visible_colors(style.background))
    ink = _ink(kind, paint, style.background)
    left = x + _SIGNS[kind]
    face = font(style.font, max(8, round(size * style.height)))
    widths = [face.getlength(char) / style.width for char in text]
    centers = [left + widths[0] / 2]
    for a, b in pairwise(widths):
        centers.append(centers[-1] + max(PITCH, (a + b) / 2))
    right = centers[-1] + widths[-1] / 2 + _PADDING
    right += _ARROW if kind == "menu" else rng.uniform(0, max(0.0, min(0.25, 0.97 - right))) * (kind != "checkbox")
    line = TextLine(text, ink, tuple((center, y) for center in centers), style.font, size)
    return Item(kind, paint, (x, y - half, right, y + half)), line


def _ink(kind: str, paint: str, background: tuple[int, int, int]) -> str:
    """Return the colour of a label: black or white, whichever stands out."""
    if kind == "checkbox":
        return "black" if sum(background) > 380 else "white"
    return "white" if paint in DARK else "black"


def _moved_item(item: Item, shift: float) -> Item:
    x1, y1, x2, y2 = item.box
    return Item(item.shape, item.color, (x1 + shift, y1, x2 + shift, y2))


def _moved_line(line: TextLine, shift: float) -> TextLine:
    return TextLine(line.string, line.color, tuple((x + shift, y) for x, y in line.centers), line.font, line.size)


def draw_screen(screen: Scene) -> Image.Image:
    """Draw a screen as an RGB image of its size."""
    rng = random.Random(screen.seed)
    image = Image.new("RGB", (screen.width, screen.height), screen.background)
    canvas = ImageDraw.Draw(image)
    for item, line in zip(screen.items, screen.lines, strict=True):
        _draw_widget(canvas, item, rng, screen)
        draw_line(canvas, line, COLORS[line.color][0], screen)
    return with_noise(image, rng, screen.seed)


def _draw_widget(canvas: ImageDraw.ImageDraw, item: Item, rng: random.Random, screen: Scene) -> None:
    w, h = screen.width, screen.height
    box = (item.box[0] * w, item.box[1] * h, item.box[2] * w - 1, item.box[3] * h - 1)
    middle = (box[1] + box[3]) / 2
    fill, edge = shade(item.color, rng), shade("gray", rng)
    stroke = max(1, round(w / 70))
    match item.shape:
        case "button":
            canvas.rounded_rectangle(box, (box[3] - box[1]) * rng.choice((0.15, 0.3, 0.5)), fill=fill)
        case "field":
            canvas.rectangle(box, fill=fill, outline=edge, width=stroke)
        case "menu":
            canvas.rectangle(box, fill=fill)
            x, size = box[2] - _ARROW * w * 0.6, 0.035 * w
            arrow = [(x - size, middle - size * 0.6), (x + size, middle - size * 0.6), (x, middle + size)]
            canvas.polygon(arrow, fill=(255, 255, 255) if item.color in DARK else (0, 0, 0))
        case "checkbox":
            _draw_checkbox(canvas, box[0], middle, _SQUARE * w, fill, edge, stroke, is_ticked=rng.random() < 0.5)


def _draw_checkbox(
    canvas: ImageDraw.ImageDraw, x: float, y: float, side: float, fill: tuple[int, ...], edge: tuple[int, ...],
    stroke: int, *, is_ticked: bool,
) -> None:  # fmt: skip
    top = y - side / 2
    canvas.rectangle((x, top, x + side, top + side), fill=fill, outline=edge, width=stroke)
    if is_ticked:
        tick = [(x + u * side, top + v * side) for u, v in ((0.2, 0.5), (0.45, 0.78), (0.82, 0.22))]
        canvas.line(tick, fill=(0, 0, 0), width=max(2, stroke))


# --- questions --------------------------------------------------------------------------------------------------------


def names(screen: Scene, index: int) -> list[str]:
    """Return what a widget may be called without doubt: by its label, and by its kind or colour if they are unique."""
    item, text = screen.items[index], screen.lines[index].string
    found = [f"{text} {item.shape}"]
    kinds = [each.shape for each in screen.items]
    if kinds.count(item.shape) == 1:
        found.append(item.shape)
    if item.shape in ("button", "menu") and [str(each) for each in screen.items].count(str(item)) == 1:
        found.append(str(item))
    return found


_VERBS = {
    "button": ("Click", "Press", "Click on"), "field": ("Click", "Click on", "Click into"),
    "checkbox": ("Click", "Tick", "Click on"), "menu": ("Click", "Open", "Click on"),
}  # fmt: skip


def instruction(rng: random.Random, screen: Scene, index: int) -> str:
    """Return an instruction to use a widget: "Click OK", "press the OK button." and so on."""
    verb = rng.choice(_VERBS[screen.items[index].shape])
    by_label = rng.random() < 0.4
    text = screen.lines[index].string if by_label else f"the {rng.choice(names(screen, index))}"
    verb = verb if rng.random() < 0.6 else verb.lower()
    return f"{verb} {text}{'.' if rng.random() < 0.4 else ''}"


def click_text(box: Box) -> str:
    """Return the official call that clicks the middle of a box, in fractions of the image."""
    return f"pyautogui.click(x={on_grid((box[0] + box[2]) / 2):.3f}, y={on_grid((box[1] + box[3]) / 2):.3f})"


def click(rng: random.Random, screen: Scene, index: int) -> Turn:
    """Ask for a click on a widget, in the official words."""
    question = OFFICIAL.click.format(instruction=instruction(rng, screen, index))
    return Turn("click", question, click_text(screen.items[index].box))


def widget(rng: random.Random, screen: Scene, index: int) -> Turn:
    """Ask for the box of a widget, in the official words."""
    choices = [*names(screen, index), screen.lines[index].string]
    return grounding("widget", rng.choice(choices), screen.items[index].box)


def widgets_counted(rng: random.Random, screen: Scene) -> Turn:
    """Ask how many widgets of a kind there are."""
    kind = rng.choice(WIDGETS)
    plural = kind + ("es" if kind == "checkbox" else "s")
    return Turn("widgets", f"How many {plural} are there?", str([item.shape for item in screen.items].count(kind)))
