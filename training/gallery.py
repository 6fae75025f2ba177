"""Draw a gallery of held-out scenes, each with a question and the answer of ternvl-nano.

Run: `python -m training.gallery docs/ternvl-nano.png`
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ternvl import LLM, SamplingParams
from training.evaluate import IMAGE_TASKS, Question, questions, score

SIDE, GAP, TEXT = 240, 16, 96
LONG_QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: "


def cell(question: Question, answer: str) -> Image.Image:
    """Draw one scene with the question and the answer below; a wrong answer is red."""
    assert question.image is not None
    image = Image.new("RGB", (SIDE, SIDE + TEXT), "white")
    shown = question.image.copy()
    shown.thumbnail((SIDE, SIDE))
    image.paste(shown.resize((SIDE * shown.width // max(shown.size), SIDE * shown.height // max(shown.size))), (0, 0))
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    asked = question.turn.question.replace(LONG_QUESTION, "Box of ")
    lines = textwrap.wrap(asked, 34)
    canvas.multiline_text((2, SIDE + 6), "\n".join(lines), fill=(90, 90, 90), font=font)
    fill = (0, 110, 60) if score(question, {"content": answer}) >= 0.5 else (190, 30, 30)
    wrapped = "\n".join(textwrap.wrap(answer, 34))
    canvas.multiline_text((2, SIDE + 10 + 18 * len(lines)), wrapped, fill=fill, font=font)
    return image


def main() -> None:
    """Ask one question per task, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument(
        "--skip", type=int, default=3, help="Index of the held-out question of each task that is shown."
    )
    args = parser.parse_args()
    llm = LLM()
    cells = []
    for i, task in enumerate(IMAGE_TASKS):
        question = questions(task, i % 2 == 0, args.skip + 1)[-1]
        content = [{"type": "image", "image": question.image}, {"type": "text", "text": question.turn.question}]
        output = llm.chat([{"role": "user", "content": content}], SamplingParams(temperature=0, max_tokens=100))[0]
        cells.append(cell(question, output.text))
    rows = -(-len(cells) // args.columns)
    sheet = Image.new("RGB", (args.columns * (SIDE + GAP) + GAP, rows * (SIDE + TEXT + GAP) + GAP), "white")
    for i, image in enumerate(cells):
        sheet.paste(image, (GAP + i % args.columns * (SIDE + GAP), GAP + i // args.columns * (SIDE + TEXT + GAP)))
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
