"""Measures what a model reaches on this machine, as shares of the machine's limits, and says what to change."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from torch import nn

from ternvl.bench.limits import Limits
from ternvl.fused.packed import PackedLinear
from ternvl.fused.replace import is_quantized
from ternvl.kernels.stage import Stage
from ternvl.llm import LLM
from ternvl.machine.processors import usable, usable_cores
from ternvl.params import SamplingParams

STREAMS = 8
_TOKENS = 48
_WORDS = 300
_CACHED = 64 * 1024**2
"""Weights of fewer bytes may stay in a processor's caches, and memory is no limit for them."""


@dataclass(frozen=True, slots=True)
class Reached:
    """One measurement: the median of several."""

    name: str
    value: float
    unit: str
    share: str = ""
    """The rate behind it and its share of the machine's limit, in words; empty if there is no single limit."""

    def line(self) -> str:
        """Return it as a line of a table."""
        digits = 0 if self.value >= 100 else 1 if self.value >= 10 else 3
        return f"{self.name:<38}{self.value:>10,.{digits}f} {self.unit:<9} {self.share}".rstrip()


@dataclass(frozen=True, slots=True)
class Work:
    """What the weights of a model ask of a machine."""

    decoder_bytes: int
    """Bytes that a decode step reads: all weights of the decoder and its output head."""
    decoder_ops: int
    """Operations for one token of a prompt, without the head and without attention; a multiply-add is two."""
    tile_ops: int
    """Operations for one tile, without attention."""

    @classmethod
    def of(cls, llm: LLM) -> Work:
        """Count the work of a model."""
        model, config = llm.engine.model, llm.engine.model.config
        vision, language = config.vision, model.language_model
        patches = (vision.image_size // vision.patch_size) ** 2
        return cls(
            decoder_bytes=sum(_bytes_of(part) for part in (language.model, language.lm_head)),
            decoder_ops=2 * _weights_of(language.model),
            tile_ops=2 * (patches * _weights_of(model.vision_model) + config.tokens_per_tile * _weights_of(model.mlp1)),
        )


def _products(module: nn.Module) -> Iterator[tuple[int, int, int]]:
    """Yield of each matrix in a module its outputs, its inputs and its bytes. Embeddings are no matrices."""
    for each in module.modules():
        if isinstance(each, Stage):
            yield each.out_features, each.in_features, each.num_bytes
        elif isinstance(each, PackedLinear | nn.Linear):
            tensors = [*each.parameters(recurse=False), *each.buffers(recurse=False)]
            yield each.out_features, each.in_features, sum(tensor.nbytes for tensor in tensors)


def _weights_of(module: nn.Module) -> int:
    return sum(n * k for n, k, _ in _products(module))


def _bytes_of(module: nn.Module) -> int:
    return sum(size for _, _, size in _products(module))


class Bench:
    """Asks one model. Every prompt is new, so that no cache has it."""

    def __init__(self, llm: LLM, repeats: int) -> None:
        """Each measurement is the median of so many."""
        self._llm, self._repeats, self._rng = llm, repeats, random.Random(0)

    def _text(self, words: int) -> str:
        return " ".join(str(self._rng.randrange(1000)) for _ in range(words))

    def _seconds(self, contents: list[Any], max_tokens: int) -> tuple[float, int]:
        """Return the seconds that the answers take together, and the tokens of the first prompt."""
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        conversations = [[{"role": "user", "content": content}] for content in contents]
        began = time.perf_counter()
        outputs = self._llm.chat(conversations, params)
        return time.perf_counter() - began, outputs[0].prompt.num_tokens

    def _median(self, once: Callable[[], float]) -> float:
        once()  # the first one warms up
        return statistics.median(once() for _ in range(self._repeats))

    def decode(self, streams: int) -> float:
        """Return the tokens per second of so many streams, without their prompts."""

        def once() -> float:
            contents = [self._text(4) for _ in range(streams)]
            short, _ = self._seconds([self._text(4) for _ in range(streams)], 1)
            long, _ = self._seconds(contents, _TOKENS + 1)
            return streams * _TOKENS / max(1e-9, long - short)

        return self._median(once)

    def prompt(self) -> tuple[float, int]:
        """Return the seconds to the first token of a long text, and its tokens."""
        _, num_tokens = self._seconds([self._text(_WORDS)], 1)
        return self._median(lambda: self._seconds([self._text(_WORDS)], 1)[0]), num_tokens

    def tile(self) -> float:
        """Return the seconds to the first token about an image of one tile."""

        def once() -> float:
            image = Image.frombytes("RGB", (64, 64), self._rng.randbytes(64 * 64 * 3)).resize((448, 448))
            content = [{"type": "image", "image": image}, {"type": "text", "text": self._text(2)}]
            return self._seconds([content], 1)[0]

        return self._median(once)


def measure_model(llm: LLM, limits: Limits, repeats: int = 3) -> list[Reached]:
    """Measure decoding, a prompt and an image, and compare them with the machine's limits."""
    bench, work = Bench(llm, repeats), Work.of(llm)
    one, many, (prompt, num_tokens), tile = bench.decode(1), bench.decode(STREAMS), bench.prompt(), bench.tile()
    rate = "int8_ops_per_s" if is_quantized(llm.engine.model) else "fp32_per_s"
    read = limits.share(bytes_per_s=one * work.decoder_bytes) if work.decoder_bytes > _CACHED else "fits into caches"
    tile_ops = work.tile_ops + llm.engine.model.config.tokens_per_tile * work.decoder_ops
    return [
        Reached("one stream", one, "tokens/s", read),
        Reached(f"{STREAMS} streams", many, "tokens/s"),
        Reached(
            f"a text of {num_tokens} tokens, first token",
            prompt,
            "s",
            limits.share(**{rate: num_tokens * work.decoder_ops / prompt}),
        ),
        Reached("an image of one tile, first token", tile, "s", limits.share(**{rate: tile_ops / tile})),
    ]


def advice(llm: LLM, limits: Limits, found: list[Reached], load: float | None = None) -> list[str]:
    """Return what to change, a sentence each. `load` is the machine's load of before; by default it is not known."""
    work, said = Work.of(llm), []
    processors = len(usable())
    if load is not None and load > 0.3 * processors:
        said.append(
            f"The load of {processors} processors was {load:.1f} before; measure again when other work is done."
        )
    is_large = work.decoder_bytes > _CACHED
    if is_large and not is_quantized(llm.engine.model) and limits.isa != "portable":
        least = limits.read_bytes_per_s / work.decoder_bytes
        said.append(
            "The model is not quantised. One stream cannot exceed "
            f"{least:.0f} tokens/s with these weights; --quantization int8 reads about a half of the bytes."
        )
    if limits.num_threads < (cores := usable_cores()):
        said.append(f"{limits.num_threads} threads compute on {cores} cores; --threads sets their number.")
    reached = found[0].value * work.decoder_bytes / limits.read_bytes_per_s
    if is_large and reached < 0.6:
        said.append(
            f"One stream reads weights at {reached:.0%} of what memory can do, where 80 to 90 % are usual. "
            "`ternvl doctor` says what this machine lacks; other processes on it cost most."
        )
    return said


def as_json(limits: Limits, found: list[Reached], said: list[str]) -> dict[str, Any]:
    """Return everything for JSON."""
    return {"limits": limits.as_dict(), "reached": [asdict(each) for each in found], "advice": said}
