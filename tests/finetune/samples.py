"""A checkpoint of the tiny random model, pictures, and files of conversations about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ternvl.checkpoint import weights
from ternvl.finetune.data import DataFile
from ternvl.finetune.dataset import Dataset, read
from ternvl.prompt.build import PromptBuilder
from tests.fakes import tiny_tokenizer
from tests.server.fakes import tiny_config, tiny_model

COLORS = ("red", "green", "blue", "white")


def write_checkpoint(folder: Path) -> Path:
    weights.save(tiny_model(), folder, dtype=torch.float32)
    (folder / "tokenizer.json").write_text(tiny_tokenizer().full.to_str(), encoding="utf-8")
    return folder


def write_images(folder: Path) -> Path:
    """One picture per colour; the white one is wide, so that it makes several tiles."""
    folder.mkdir()
    for color in COLORS:
        Image.new("RGB", (300, 60) if color == "white" else (60, 60), color).save(folder / f"{color}.png")
    return folder


def line(color: str, answer: str | None = None, question: str = "which?") -> dict[str, Any]:
    """A question about a picture and its answer, in OpenAI's format."""
    content = [{"type": "image_url", "image_url": {"url": f"{color}.png"}}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer or f"it is {color}"}]
    return {"messages": turns}


def text_line(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_lines(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def write_training_data(path: Path, count: int = 12) -> Path:
    """Lines of which every third has no image, with answers of several lengths."""
    rows = [
        text_line("say " + "a" * i, "ab" * i) if i % 3 == 2 else line(COLORS[i % 4], f"it is {COLORS[i % 4]}" + "!" * i)
        for i in range(count)
    ]
    return write_lines(path, rows)


def builder_for(images: Path | None = None, *, max_dynamic_patch: int | None = None) -> PromptBuilder:
    from ternvl.limits import ImageLimits

    limits = ImageLimits(allow_local_media=images)
    return PromptBuilder(tiny_config(), tiny_tokenizer(), limits, max_dynamic_patch)


def read_dataset(path: Path, images: Path | None = None) -> Dataset:
    return read(DataFile(path, images), builder_for(images), max_length=512)
