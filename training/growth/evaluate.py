"""Evaluate what the helpers of `ternvl.tasks` get from a model: clicks, boxes, points, inspections and comparisons.

Each question goes through a `Tasks` client to the real server, and what the helper returns is compared with the truth;
an answer that cannot be parsed scores 0. Pictures come from seeds that training does not use.
Run: `python -m training.growth.evaluate --each 100` (of the embedded model; `--model` names another checkpoint).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from ternvl.errors import UnparsableAnswer
from ternvl.evaluation.regions import overlap
from ternvl.tasks import PLAIN, Point, Tasks
from training import tasks
from training.evaluate import HELD_OUT_SEED, SAMPLE, served, table
from training.growth import pairs, parts, screens
from training.scenes import Box, Item, draw, random_scene
from training.tasks import Turn


@dataclass(frozen=True, slots=True)
class HelperQuestion:
    """A call of a helper, and the score of what it returns."""

    score: Callable[[Tasks], float]

    def ask(self, client: Tasks) -> float:
        """Return the score, which is 0 for an answer that cannot be parsed."""
        try:
            return self.score(client)
        except UnparsableAnswer:
            return 0.0


Maker = Callable[[random.Random, bool], HelperQuestion]
"""Draws a question; the flag says whether its picture makes one tile, or several."""


def is_within(point: Point | None, box: Box, image: Image.Image) -> float:
    """Return 1 for a pixel within a box that is given in fractions of the image, else 0."""
    if point is None:
        return 0.0
    x, y = (point.x + 0.5) / image.width, (point.y + 0.5) / image.height
    return float(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def first_overlap(client: Tasks, image: Image.Image, phrase: str, box: Box) -> float:
    """Ask for a box; return its overlap with the true one, which is given in fractions of the image."""
    found, (x1, y1, x2, y2) = client.ground(image, phrase)[0].xyxy, box
    return overlap(found, (x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height))


def object_located(rng: random.Random, single_tile: bool) -> HelperQuestion:
    """Ask for the box of a shape."""
    scene = random_scene(rng, rng.choice((1, 2, 3)), single_tile=single_tile)
    item, image = rng.choice(scene.items), draw(scene)
    return HelperQuestion(lambda client: first_overlap(client, image, str(item), item.box))


def object_pointed_at(rng: random.Random, single_tile: bool) -> HelperQuestion:
    """Ask for the middle of a shape."""
    scene = random_scene(rng, rng.choice((1, 2, 3)), single_tile=single_tile)
    item, image = rng.choice(scene.items), draw(scene)
    return HelperQuestion(lambda client: is_within(client.point(image, str(item)), item.box, image))


def click(rng: random.Random, single_tile: bool, *, held_out: bool = False) -> HelperQuestion:
    """Ask for a click; with `held_out`, all labels are strings that training never shows."""
    screen = screens.random_screen(rng, single_tile=single_tile, held_out=held_out)
    index, image = rng.randrange(len(screen.items)), screens.draw_screen(screen)
    asked, box = screens.instruction(rng, screen, index), screen.items[index].box
    return HelperQuestion(lambda client: is_within(client.click(image, asked).point, box, image))


def widget_located(rng: random.Random, single_tile: bool) -> HelperQuestion:
    """Ask for the box of a widget."""
    screen = screens.random_screen(rng, single_tile=single_tile)
    index, image = rng.randrange(len(screen.items)), screens.draw_screen(screen)
    name, box = rng.choice(screens.names(screen, index)), screen.items[index].box
    return HelperQuestion(lambda client: first_overlap(client, image, name, box))


def part_inspected(rng: random.Random, single_tile: bool) -> HelperQuestion:
    """Ask a check of a part, and compare whether it passed."""
    part = parts.random_part(rng, single_tile=single_tile)
    turn, image = parts.check(rng, part), parts.draw_part(part)

    def score(client: Tasks) -> float:
        (finding,) = client.inspect(image, [turn.question], locate=False)
        return float(finding.passed == (turn.answer == "Yes."))

    return HelperQuestion(score)


def _broken_part(rng: random.Random, single_tile: bool) -> tuple[parts.Part, Item]:
    while True:
        part = parts.random_part(rng, single_tile=single_tile)
        if part.defect is not None:
            return part, part.defect


def defect_named(rng: random.Random, single_tile: bool) -> HelperQuestion:
    """Inspect a part with a defect; the check must fail, and the reason name the defect."""
    part, _ = _broken_part(rng, single_tile)
    image = parts.draw_part(part)
    asked = rng.choice(parts.CHECKS[""])
    return HelperQuestion(
        lambda client: float(client.inspect(image, [asked], locate=False)[0].reason == parts.described(part))
    )


def defect_located(rng: random.Random, single_tile: bool) -> HelperQuestion:
    """Ask for the box of a defect in the words of the right description, as `inspect` does."""
    part, defect = _broken_part(rng, single_tile)
    image, phrase = parts.draw_part(part), parts.described(part).rstrip(".")
    return HelperQuestion(lambda client: first_overlap(client, image, phrase, defect.box))


def about_pair(make: Callable[[random.Random], tuple[pairs.Pair, Turn]]) -> Maker:
    """Return a maker of questions about two pictures, of one tile each."""

    def maker(rng: random.Random, _: bool) -> HelperQuestion:
        pair, turn = make(rng)
        images = [draw(scene) for scene in pair]
        return HelperQuestion(lambda client: float(tasks.is_right(turn, client.compare(images, turn.question))))

    return maker


HELPER_TASKS: dict[str, Maker] = {
    "ground: object (mean IoU)": object_located,
    "point: object": object_pointed_at,
    "click: widget": click,
    "click: widget, unseen label": lambda rng, single: click(rng, single, held_out=True),
    "ground: widget (mean IoU)": widget_located,
    "inspect: passed or failed": part_inspected,
    "inspect: defect named": defect_named,
    "ground: defect (mean IoU)": defect_located,
    "compare: what moved": about_pair(pairs.what_moved),
    "compare: what is nearer": about_pair(pairs.what_is_nearer),
}
PAIRS = ("compare: what moved", "compare: what is nearer")
"""Tasks without pictures of several tiles."""


def helper_questions(task: str, single_tile: bool, count: int) -> list[HelperQuestion]:
    """Return the first `count` questions of a task, which are always the same."""
    rng = random.Random(f"{HELD_OUT_SEED} {task} {single_tile}")
    return [HELPER_TASKS[task](rng, single_tile) for _ in range(count)]


def measure(address: str, each: int, only: str = "", at_once: int = 16) -> dict[str, dict[str, float]]:
    """Return mean scores by task, for one tile and for several, of all questions and of the first `SAMPLE`."""
    results: dict[str, dict[str, float]] = {}
    with Tasks(f"{address}/v1", prompts=PLAIN, max_tokens=100) as client, ThreadPoolExecutor(at_once) as pool:
        for task in (task for task in HELPER_TASKS if only in task):
            results[task] = {"count": each}
            for name, single in (("one tile", True), ("several tiles", False)):
                if single or task not in PAIRS:
                    asked = helper_questions(task, single, each)
                    scores = list(pool.map(lambda question: question.ask(client), asked))
                    results[task][name] = sum(scores) / len(scores)
                    results[task][f"{name}, sample"] = sum(scores[:SAMPLE]) / len(scores[:SAMPLE])
            print(f"{task:30s} " + "  ".join(f"{k}: {v:.4g}" for k, v in results[task].items()), flush=True)
    return results


def main() -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="Checkpoint to evaluate; by default the embedded model.")
    parser.add_argument("--each", type=int, default=100, help="Number of questions per task and kind of picture.")
    parser.add_argument("--only", default="", help="Only the tasks whose name contains this text.")
    args = parser.parse_args()
    with served(args.model) as address:
        results = measure(address, args.each, args.only)
    print("\n" + table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
