"""What a benchmark asks of an item."""

from __future__ import annotations

from PIL import Image

from ternvl.evaluation.benchmarks import Benchmark
from ternvl.evaluation.items import BenchmarkItem
from ternvl.limits import ImageLimits
from ternvl.tasks.pictures import Picture, open_picture
from ternvl.tasks.requests import TaskRequest
from ternvl.tasks.steps import in_rows


def to_request(item: BenchmarkItem, benchmark: Benchmark, limits: ImageLimits) -> TaskRequest:
    """Return the request of an item; blocks while its images are read. Raises ImageError."""
    pictures = [open_picture(path, limits, f"The image {path.name!r}") for path in item.images]
    if pictures and benchmark.doubles_first_image:
        pictures[0] = _doubled(pictures[0])
    shown = in_rows(pictures, benchmark.image_label) if len(pictures) > 1 else pictures
    return TaskRequest(
        parts=(*shown, question_of(item, benchmark)),
        system=benchmark.system,
        max_tokens=benchmark.max_tokens,
        max_tiles=max(1, min(benchmark.max_tiles, benchmark.total_tiles // max(1, len(pictures)))),
    )


def question_of(item: BenchmarkItem, benchmark: Benchmark) -> str:
    """Return the text of an item's question, with its hint and its options."""
    lines = [benchmark.option.format(letter=letter, text=text) for letter, text in item.labelled_options.items()]
    question = f"{item.hint}\n{item.question}" if item.hint else item.question
    template = benchmark.prompt_of(bool(item.options))
    return template.format(question=question, options="\n".join(lines)).rstrip("\n")


def _doubled(picture: Picture) -> Picture:
    width, height = picture.size
    return Picture(picture.image.resize((2 * width, 2 * height), Image.Resampling.BILINEAR))
