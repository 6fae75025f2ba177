"""The worker of transformers: `worker_transformers.py MODEL float32|bfloat16`.

Several asks form one batch, padded on the left.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import transformers
from PIL import Image
from protocol import Answer, Ask, Contestant, serve
from transformers import AutoModelForImageTextToText, AutoTokenizer, GotOcr2ImageProcessorPil

TOKENS_A_TILE = 256
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Clock:
    """A streamer that records the times of tokens. Its first value is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Record the time of a token, unless it is the prompt."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing, as all tokens are recorded already."""


def load() -> Contestant:
    """Load the model from the layout that transformers reads."""
    folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None  # lengths are forced
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", pad_token="<|endoftext|>")
    size = {"height": 448, "width": 448}
    processor = GotOcr2ImageProcessorPil(
        crop_to_patches=True, min_patches=1, max_patches=12, size=size, image_mean=MEAN, image_std=STD
    )

    def inputs(asks: list[Ask]) -> dict[str, Any]:
        tiles, texts = [], []
        for ask in asks:
            picture = ""
            if ask.image:
                image = Image.open(ask.image).convert("RGB")
                tiles.append(processor(image, return_tensors="pt")["pixel_values"].to(dtype))
                picture = f"<img>{'<IMG_CONTEXT>' * (TOKENS_A_TILE * len(tiles[-1]))}</img>\n"
            messages = [{"role": "user", "content": picture + ask.text}]
            texts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        return {**batch, **({"pixel_values": torch.cat(tiles)} if tiles else {})}

    @torch.inference_mode()
    def answer(asks: list[Ask]) -> list[Answer]:
        start = time.perf_counter()
        batch, clock = inputs(asks), Clock()
        num_tokens = asks[0].max_tokens
        streamer = {"streamer": clock} if len(asks) == 1 else {}  # streamers support only one sequence
        out = model.generate(**batch, max_new_tokens=num_tokens, do_sample=False, **streamer)
        end = time.perf_counter()
        first, last = (clock.times[1], clock.times[-1]) if clock.times else (end, end)
        made = out.shape[1] - batch["input_ids"].shape[1]
        lengths = batch["attention_mask"].sum(1).tolist()
        return [Answer(length, made, first - start, last - start) for length in lengths]

    return Contestant(answer, f"transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    serve(load)
