"""The settings of the public benchmarks: question, tiles, length of answers and metric, with InternVL3-1B's scores.

Settings: OpenGVLab/InternVL (`internvl_chat/eval`), VLMEvalKit (`vlmeval/vlm/internvl`) and MMAD. Scores: InternVL3
(arXiv 2504.10479), of the model without a suffix (MPO).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ternvl.tasks.prompts import OFFICIAL

Average = Literal["items", "categories", "f1", "mme", "hallusion", "groups", "points"]
"""How the scores of items become one: their mean in percent, the mean of the categories' means or F1 scores, MME's sum
of accuracies, HallusionBench's mean of three accuracies, the share of groups in which all is right, or points of 1,000.
"""

_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_GROUND = OFFICIAL.ground.replace("{phrase}", "{question}")
_CLICK = OFFICIAL.click.replace("{instruction}", "{question}")
_REASON = (
    "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready "
    'to answer, please use the format "Final answer: .."\n\nQuestion:\n\n{question}\n{options}'
)
_ROTATIONS = "right in all rotations of the options (group); of the test set, whose answers only its server has"
_CHARTS = "the categories are human and augmented"
_INSPECT = (
    "You are an industrial inspector who checks products by images. You should judge whether there is a defect in the "
    "query image and answer the questions about it.\nAnswer with the option's letter from the given choices directly!\n"
    "The last image is the query image\nQuestion: {question}\n{options}"
)
_VIDEO = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n\nQuestion: {question}\nOptions:\n{options}\nOnly give the best option."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """How the items of one benchmark are asked and scored."""

    metric: str
    prompt: str = "{question}"
    """The question as it is asked; `{options}` are the lines of its options."""
    open_prompt: str | None = None
    """`prompt` for items without options; None for the same."""
    open_metric: str | None = None
    """`metric` for items without options; None for the same."""
    option: str = "{letter}. {text}"
    """The line of one option."""
    system: str | None = None
    max_tiles: int = 6
    """The most tiles of an image."""
    total_tiles: int = 64
    """The most tiles of all images together; each gets its share, at least one."""
    max_tokens: int = 100
    average: Average = "items"
    image_label: str = "Image-{number}: "
    """What stands before each of several images."""
    doubles_first_image: bool = False
    """Whether the first image is enlarged to twice its size."""
    published: float | None = None
    """The score of InternVL3-1B."""
    note: str = ""
    """What is to be known beside the published score."""

    def metric_of(self, has_options: bool) -> str:
        """Return the name of the metric for an item."""
        return self.metric if has_options or self.open_metric is None else self.open_metric

    def prompt_of(self, has_options: bool) -> str:
        """Return the template of an item's question."""
        return self.prompt if has_options or self.open_prompt is None else self.open_prompt


def _short(metric: str, **settings: object) -> Benchmark:
    return Benchmark(metric=metric, prompt="{question} " + _SHORT, **settings)  # type: ignore[arg-type]


def _choice(**settings: object) -> Benchmark:
    return Benchmark(metric="options", prompt="{question}\n{options}\n" + _LETTER, **settings)  # type: ignore[arg-type]


BENCHMARKS: dict[str, Benchmark] = {
    "vqav2": _short("vqa", max_tokens=10),
    "okvqa": _short("vqa", max_tokens=10),
    "gqa": _short("exact", max_tokens=10),
    "textvqa": _short("vqa", max_tokens=10, published=74.1),
    "vizwiz": Benchmark(
        metric="vqa",
        prompt="{question} When the provided information is insufficient, respond with 'Unanswerable'. " + _SHORT,
        max_tokens=10,
    ),
    "docvqa": _short("anls", max_tiles=18, published=81.9, note="of the test set, whose answers only its server has"),
    "infovqa": _short("anls", max_tiles=24, published=53.7, note="of the test set, whose answers only its server has"),
    "mpdocvqa": _short("anls", max_tiles=18),
    "chartqa": _short("relaxed", max_tiles=12, average="categories", published=75.3, note=_CHARTS),
    "ai2d": Benchmark(metric="exact", max_tokens=10, published=69.4, note="the question has the options in it"),
    "ocrbench": Benchmark(
        metric="ocr", prompt="{question}\n" + _SHORT, max_tiles=24, max_tokens=4096, average="points", published=790
    ),
    "mmbench": _choice(average="groups", published=72.6, note=_ROTATIONS),
    "mmbench-v11": _choice(average="groups", published=69.9, note=_ROTATIONS),
    "mmbench-cn": Benchmark(metric="options", prompt="{question}\n{options}\n请直接回答选项字母。", average="groups"),
    "mmstar": _choice(published=51.5),
    "scienceqa": _choice(),
    "seed": _choice(),
    "realworldqa": Benchmark(
        metric="options",
        prompt="{question}\n{options}\n" + _LETTER,
        open_prompt="{question}\n" + _SHORT,
        open_metric="exact",
        max_tokens=4096,
        published=58.2,
    ),
    "mmmu": Benchmark(
        metric="options",
        prompt="{question}\n{options}\n" + _LETTER,
        open_prompt="{question}\n" + _SHORT,
        open_metric="exact",
        max_tiles=12,
        doubles_first_image=True,
        published=43.4,
        note="measured with reasoning before the answer (USE_COT)",
    ),
    "mathvista": Benchmark(
        metric="final_answer", prompt=_REASON, max_tokens=4096, published=45.8, note="extracted by a judge"
    ),
    "pope": Benchmark(
        metric="pope", prompt="{question}\n" + _SHORT, average="f1", published=90.7,
        note="F1, the mean of the categories adversarial, popular and random",
    ),
    "mme": _short("yes_no", max_tokens=20, average="mme", published=1934.4),
    "hallusionbench": Benchmark(
        metric="yes_no",
        prompt="{question} Please answer yes or no. " + _SHORT,
        max_tokens=4096,
        average="hallusion",
        published=41.4,
        note="mean of the accuracies of answers, figures and questions",
    ),
    "refcoco": Benchmark(
        metric="iou", prompt=_GROUND, average="categories", published=81.6,
        note="categories are the eight splits of RefCOCO, RefCOCO+ and RefCOCOg",
    ),
    "screenspot": Benchmark(metric="point", prompt=_CLICK, system=OFFICIAL.click_system, max_tiles=12),
    "screenspot-box": Benchmark(metric="point", prompt=_GROUND, max_tiles=12),
    "blink": _choice(max_tiles=12, total_tiles=12),
    "mantis": _choice(max_tiles=12, total_tiles=12),
    "mmiu": _choice(max_tiles=12, total_tiles=12, average="categories"),
    "mvbench": Benchmark(
        metric="best_option",
        prompt=_VIDEO,
        option="({letter}) {text}",
        max_tiles=1,
        max_tokens=1000,
        image_label="Frame{number}: ",
        published=63.1,
        note="with 16 frames",
    ),
    "video-mme": _choice(max_tiles=1, max_tokens=4096, image_label="Frame-{number}: ", published=51.0),
    "vsibench": Benchmark(
        metric="options",
        prompt="These are frames of a video.\n{question}\nOptions:\n{options}\n" + _LETTER,
        open_prompt="These are frames of a video.\n{question}\nAnswer briefly and directly in one float number.",
        open_metric="mra",
        max_tiles=1,
        image_label="Frame-{number}: ",
        note="with 32 frames",
    ),
    "mmad": Benchmark(
        metric="options", prompt=_INSPECT, max_tiles=1, max_tokens=200, average="categories",
        note="normal samples come before the query image",
    ),
}  # fmt: skip
"""All settings by the names that `ternvl eval --benchmark` takes."""
