"""Evaluate ternvl-nano: ask held-out questions through the real server, and score the answers by task.

Scenes come from seeds that training does not use; drawn strings, names and words are from the tenth that is held out.
Every picture is sent as PNG in a `data:` URI over HTTP, tiled like any image, and answered greedily.
Run: `python -m training.evaluate --each 300 --card` (writes results.json and the model card's table). With
`--quantization int8` or `int4` it scores the quantised model; `--agreement` compares its next tokens instead.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import io
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from PIL import Image

from ternvl.evaluation.regions import overlap
from training import tasks
from training.scenes import Scene, draw, random_scene
from training.tasks import Turn

if TYPE_CHECKING:
    from ternvl.quant.agreement import Agreement

HELD_OUT_SEED = 20_000_000
CARD = Path(__file__).parent.parent / "ternvl" / "embedded" / "ternvl-nano" / "README.md"
RESULTS = Path(__file__).parent / "results.json"
SAMPLE = 10
"""Number of questions per task that the tests ask again, to compare the scores with the published ones."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its true answer, its picture and its tools."""

    turn: Turn
    image: Image.Image | None = None
    tools: tuple[dict[str, Any], ...] = ()


Maker = Callable[[random.Random, bool], Question | None]
"""Draws a question; the flag says whether its picture makes one tile, or several."""


def about_shapes(task: Callable[[random.Random, Scene], Turn | None], *num_items: int) -> Maker:
    """Return a maker of questions about scenes with one of these numbers of items."""

    def make(rng: random.Random, single_tile: bool) -> Question | None:
        scene = random_scene(rng, rng.choice(num_items), single_tile=single_tile)
        turn = task(rng, scene)
        return Question(turn, draw(scene)) if turn else None

    return make


def about_text(rng: random.Random, single_tile: bool) -> Question:
    """Draw a picture of a held-out string, and the question to read it."""
    string = tasks.random_word(rng, tasks.random_string, held_out=True)
    while True:
        scene = random_scene(rng, 0, text=string, single_tile=single_tile)
        if scene.lines[0].string == string:  # a string that is too long for the canvas is shortened
            return Question(tasks.read(rng, scene), draw(scene))


IMAGE_TASKS: dict[str, Maker] = {
    "one object named": about_shapes(tasks.describe, 1),
    "two objects described": about_shapes(tasks.describe, 2),
    "three objects described": about_shapes(tasks.describe, 3),
    "counted (0 to 5)": about_shapes(tasks.count, 0, 1, 2, 3, 4, 5),
    "counted by kind": about_shapes(tasks.count_kind, 1, 2, 3, 4, 5),
    "color of": about_shapes(tasks.color_of, 1, 2, 3, 4),
    "shape of": about_shapes(tasks.shape_of, 1, 2, 3, 4),
    "text read whole": about_text,
    "existence": about_shapes(tasks.exists, 1, 2, 3, 4),
    "place (of nine)": about_shapes(tasks.place, 1, 2, 3),
    "relation": about_shapes(tasks.relation, 2, 3, 4),
    "box (mean IoU)": about_shapes(tasks.box, 1, 2, 3),
}
TEXT_TASKS: dict[str, Maker] = {
    "chat": lambda rng, _: Question(_until(rng, "chat")),
    "capitals": lambda rng, _: Question(_until(rng, "capital")),
    "unseen words repeated": lambda rng, _: Question(tasks.copy(rng, held_out=True)),
    "tool called, unseen argument": lambda rng, _: _tool_question(rng),
}


def _until(rng: random.Random, task: str) -> Turn:
    while True:
        turn = tasks.chat(rng)
        if turn.task == task:
            return turn


def _tool_question(rng: random.Random) -> Question:
    tools, turn = tasks.tool_use(rng, held_out=True)
    return Question(turn, None, tuple(tools))


def questions(task: str, single_tile: bool, count: int) -> list[Question]:
    """Return the first `count` held-out questions of a task, which are always the same."""
    maker = (IMAGE_TASKS | TEXT_TASKS)[task]
    rng = random.Random(f"{HELD_OUT_SEED} {task} {single_tile}")
    found: list[Question] = []
    while len(found) < count:
        question = maker(rng, single_tile)
        if question is not None:
            found.append(question)
    return found


def body(question: Question) -> dict[str, Any]:
    """Return the body of the Chat Completions request."""
    content: str | list[dict[str, Any]] = question.turn.question
    if question.image is not None:
        buffer = io.BytesIO()
        question.image.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": content}]
    request: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 200}
    return request | ({"tools": list(question.tools)} if question.tools else {})


def score(question: Question, message: dict[str, Any]) -> float:
    """Return 1 for the right answer and 0 for a wrong one, or for boxes the overlap with the true box."""
    turn, text = question.turn, message.get("content") or ""
    if turn.task == "tool_call":
        wanted = json.loads(turn.answer.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
        calls = [call["function"] for call in message.get("tool_calls") or []]
        return float([{**call, "arguments": json.loads(call["arguments"])} for call in calls] == [wanted])
    if turn.task == "box":
        return overlap(_coordinates(turn.answer), _coordinates(text))
    return float(tasks.is_right(turn, text))


def _coordinates(text: str) -> tuple[float, float, float, float]:
    numbers = [float(number) for number in re.findall(r"\d+", text)]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else (0, 0, 0, 0)


@contextmanager
def served(model: str | None, quantization: str = "none") -> Iterator[str]:
    """Run a server on a free port; yield its address."""
    from ternvl.config import ServerConfig
    from ternvl.llm import LLM
    from ternvl.server.app import create_app

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = create_app(LLM(model, quantization=quantization), ServerConfig())
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


async def ask(address: str, asked: list[Question], at_once: int = 16) -> list[float]:
    """Ask questions, `at_once` at a time; return the scores of the answers, in order."""
    gate = asyncio.Semaphore(at_once)

    async def one(client: httpx.AsyncClient, question: Question) -> float:
        async with gate:
            reply = await client.post(f"{address}/v1/chat/completions", json=body(question))
        reply.raise_for_status()
        return score(question, reply.json()["choices"][0]["message"])

    async with httpx.AsyncClient(timeout=300) as client:
        return await asyncio.gather(*(one(client, question) for question in asked))


def evaluate(
    model: str | None = None, each: int = 300, only: str = "", quantization: str = "none"
) -> dict[str, dict[str, float]]:
    """Return mean scores by task, for one tile and for several, of all questions and of the first `SAMPLE`."""
    results: dict[str, dict[str, float]] = {}
    with served(model, quantization) as address:
        for task in [*IMAGE_TASKS, *TEXT_TASKS]:
            if only not in task:
                continue
            for name, single in (("one tile", True), ("several tiles", False)):
                if single or task in IMAGE_TASKS:
                    scores = asyncio.run(ask(address, questions(task, single, each)))
                    row = results.setdefault(task, {"count": each})
                    row[name] = sum(scores) / len(scores)
                    row[f"{name}, sample"] = sum(scores[:SAMPLE]) / len(scores[:SAMPLE])
            print(f"{task:30s} " + "  ".join(f"{k}: {v:.4g}" for k, v in results[task].items()), flush=True)
    return results


def agreement(model: str | None, each: int, only: str, quantization: str) -> Agreement:
    """Compare the next tokens of the quantised and the unquantised model, along the latter's answers."""
    from ternvl import LLM, SamplingParams
    from ternvl.quant.agreement import Agreement, measure

    llm, quantised, total = LLM(model), LLM(model, quantization=quantization).engine.model, Agreement()
    for task in [*IMAGE_TASKS, *TEXT_TASKS]:
        if only not in task:
            continue
        found = Agreement()
        for single in (True, False) if task in IMAGE_TASKS else (True,):
            asked = [body(question) for question in questions(task, single, each)]
            prompts = [llm.prompt(one["messages"], tools=one.get("tools", ())) for one in asked]
            outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=200))
            answered = [(output.prompt, output.token_ids) for output in outputs]
            found = sum(measure(llm.engine.model, quantised, answered), found)
        total += found
        print(
            f"{task:30s} {found.positions:6d} positions, {found.top1:8.3%} the same, KL {found.kl_mean:.2e}", flush=True
        )
    return total


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the scores as a Markdown table, in percent."""
    rows = ["| task | questions | one tile | several tiles |", "|---|---|---|---|"]
    for task, row in results.items():
        several = f"{100 * row['several tiles']:.1f}" if "several tiles" in row else ""
        rows.append(f"| {task} | {row['count']:.0f} | {100 * row['one tile']:.1f} | {several} |")
    return "\n".join(rows)


def write_card(results: dict[str, dict[str, float]]) -> None:
    """Write the table between the marks in the model card."""
    text = CARD.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)
    CARD.write_text(marked.sub(lambda match: match[1] + table(results) + "\n" + match[2], text), encoding="utf-8")


def main() -> None:
    """Evaluate and print the table; with --card, also write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="Checkpoint to evaluate; by default the embedded model.")
    parser.add_argument("--each", type=int, default=300, help="Number of questions per task and kind of picture.")
    parser.add_argument("--only", default="", help="Only the tasks whose name contains this text.")
    parser.add_argument("--quantization", default="none", help="Quantisation of the model: none, int8 or int4.")
    parser.add_argument("--agreement", action="store_true", help="Compare next tokens with the unquantised model's.")
    parser.add_argument("--card", action="store_true", help="Write results.json and the model card's table.")
    args = parser.parse_args()
    if args.card and args.quantization != "none":
        parser.error("--card writes the scores of the unquantised model, so it cannot be combined with --quantization.")
    if args.agreement:
        total = agreement(args.model, args.each, args.only, args.quantization)
        print(json.dumps(dataclasses.asdict(total) | {"top1": total.top1, "kl_mean": total.kl_mean}))
        return
    results = evaluate(args.model, args.each, args.only, args.quantization)
    print("\n" + table(results))
    if args.card:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        write_card(results)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
