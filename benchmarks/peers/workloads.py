"""The workloads, the same for every contestant: prompts, pictures, lengths and metrics.

All prompts differ, so a prefix cache finds nothing but the system message. Pictures are smoothed noise.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

_SIMPLE = """
river stone light house green water table music paper cloud small bright north winter garden bridge silver window
morning road field slow quiet market letter island summer horse forest copper round simple village engine ocean
yellow mountain number early signal bread glass corner open station heavy circle clear train golden mirror street
apple little harbor storm narrow candle picture deep wooden valley
"""
WORDS = tuple(re.findall("[a-z]+", _SIMPLE))  # nearly all of them are one token
QUESTION = "Describe what can be seen in this picture, with its colours and shapes:"
Response = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """One figure that is measured in a workload."""

    name: str
    unit: str
    higher_is_better: bool
    of: Callable[[Response], float | None]


@dataclass(frozen=True)
class Workload:
    """Asks that are sent together, and the metrics of the response."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    max_tokens: int
    num_streams: int = 1
    num_text_tokens: int = 0
    num_words: int = 0
    image_size: tuple[int, int] | None = None
    restarts: bool = False
    """Whether the contestant's process is started for each repeat, because the start is measured."""
    neighbours: int = 0
    """How many other processes compute meanwhile."""

    def beside(self, neighbours: int) -> Workload:
        """Return this workload with so many processes that compute meanwhile."""
        plural = "s" if neighbours > 1 else ""
        title = f"{self.title}, {neighbours} busy neighbour{plural}"
        return replace(self, name=f"{self.name}+{neighbours}", title=title, neighbours=neighbours)

    @property
    def mode(self) -> str:
        """The mode of a contestant that has one for one stream and one for several."""
        return "one" if self.num_streams == 1 else "many"


def first_token_s(response: Response) -> float:
    """Return the seconds to the first token of a single answer, including the preparation of text and JPEG."""
    return float(response["answers"][0]["first_s"])


def decode_rate(response: Response) -> float:
    """Return the tokens per second of a single answer, after its first token."""
    answer = response["answers"][0]
    return float((answer["output_tokens"] - 1) / (answer["last_s"] - answer["first_s"]))


def total_rate(response: Response) -> float:
    """Return the tokens per second of all streams, from sending the prompts to the end of the last answer."""
    return float(sum(answer["output_tokens"] for answer in response["answers"]) / response["seconds"])


TTFT = Metric("time to first token", "s", False, first_token_s)
DECODE = Metric("decode", "tokens/s", True, decode_rate)
TOTAL = Metric("all streams", "tokens/s", True, total_rate)
PEAK = Metric("peak memory", "bytes", False, lambda response: response["peak_bytes"])
READY = Metric("start to ready", "s", False, lambda response: response["ready_s"])
ANSWERED = Metric("start to first answer", "s", False, lambda response: response["answered_s"])
RESIDENT = Metric("resident memory", "bytes", False, lambda response: response["resident_bytes"])

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tile", "one 448x448 tile", (TTFT,), 1, image_size=(448, 448)),
        Workload("tiles", "1000x747 image, 13 tiles", (TTFT,), 1, image_size=(1000, 747)),
        Workload("text", "950-token text", (TTFT,), 1, num_text_tokens=950),
        Workload("decode", "decode, one stream", (DECODE,), 97, num_words=64),
        Workload("streams", "8 streams, text", (TOTAL,), 64, num_streams=8, num_words=64),
        Workload("image-streams", "8 streams, an image each", (TOTAL,), 64, num_streams=8, image_size=(448, 448)),
        Workload("long", "14,722-token text", (TTFT, DECODE, PEAK), 33, num_text_tokens=14_722),
        Workload("start", "starting", (READY, ANSWERED, RESIDENT), 1, num_words=8, restarts=True),
    )
}


class Prompts:
    """Makes asks. `count` returns the number of tokens of a prompt with a text, including the template."""

    def __init__(self, folder: Path, count: Callable[[str], int], seed: int = 0) -> None:
        self.folder = folder
        self._count = count
        self._seed = seed

    def asks(self, workload: Workload, turn: int, *, max_tokens: int | None = None) -> list[dict[str, Any]]:
        """Return the asks of a turn, which are the same for every contestant and differ from turn to turn."""
        return [
            self._ask(workload, f"{self._seed} {workload.name} {turn} {stream}", max_tokens or workload.max_tokens)
            for stream in range(workload.num_streams)
        ]

    def _ask(self, workload: Workload, name: str, max_tokens: int) -> dict[str, Any]:
        rng = random.Random(name)
        if workload.num_text_tokens:
            text = self.text(rng, workload.num_text_tokens)
        else:
            text = " ".join(rng.choices(WORDS, k=workload.num_words or 12))
        image = None
        if workload.image_size:
            text = f"{QUESTION} {text}"
            image = str(picture(self.folder / f"{name}.jpg", rng, workload.image_size))
        return {"text": text, "image": image, "max_tokens": max_tokens}

    def text(self, rng: random.Random, num_tokens: int) -> str:
        """Return words that make a prompt of exactly `num_tokens` tokens; most words are one token."""
        words = rng.choices(WORDS, k=num_tokens)
        low, high = 1, num_tokens
        while low < high:  # finds the largest number of words that fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._count(" ".join(words[:middle])) <= num_tokens else (low, middle - 1)
        text = " ".join(words[:low])
        while self._count(text) < num_tokens:
            text += "!?"[self._count(text) % 2]
        return text


def picture(path: Path, rng: random.Random, size: tuple[int, int]) -> Path:
    """Write an image of smoothed noise as JPEG; return its path."""
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)).save(path, "JPEG", quality=90)
    return path


def problem(workload: Workload, response: Response, asks: Sequence[dict[str, Any]]) -> str | None:
    """Return why a response is not valid, or None."""
    if "error" in response:
        return str(response["error"])
    made = [answer["output_tokens"] for answer in response["answers"]]
    wanted = [ask["max_tokens"] for ask in asks]
    return None if made == wanted else f"answers of {made} tokens instead of {wanted}"
