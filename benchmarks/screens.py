"""Measure what the next screenshot costs when only a region of it has changed.

    python -m benchmarks.screens
    python -m benchmarks.screens DIR --quantization int8 --screens 5

It makes a series of screenshots that are cut into 12 tiles and a thumbnail. From one to the next, a region within one
tile changes, so two tiles are new: that tile and the thumbnail. Each screenshot is asked about once, in a conversation
of its own. A row has the seconds to the first token from the decoded image on, the seconds of processors that the
process took for it, which other processes disturb less, and what was computed. The last lines have the medians of the
second to the last screenshot and their ratio to the first; `--most` makes a larger ratio of seconds the exit code 1.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

from ternvl.engine.engine import Engine
from ternvl.llm import LLM
from ternvl.params import SamplingParams

COLUMNS, ROWS = 4, 3
QUESTION = "Where is the button?"
HEAD = f"{'screen':>6}  {'first token':>11}  {'processors':>10}  {'tiles encoded':>13}  {'tokens computed':>15}"


def first_screen(side: int, rng: random.Random) -> Image.Image:
    """Return a screenshot of windows with some lines, one window in each tile of `side` pixels."""
    image = Image.new("RGB", (COLUMNS * side, ROWS * side), (226, 230, 236))
    draw, margin = ImageDraw.Draw(image), side // 20
    for column in range(COLUMNS):
        for row in range(ROWS):
            left, top = column * side + margin, row * side + margin
            draw.rectangle((left, top, left + 18 * margin, top + 17 * margin), (250, 250, 250), (90, 90, 90))
            for line in range(8):
                text = f"{column}.{row}.{line} {rng.randrange(10**8)}"
                draw.text((left + margin, top + 2 * margin * line), text, (20, 20, 20), font_size=margin)
    return image


def change(screen: Image.Image, side: int, rng: random.Random) -> Image.Image:
    """Return the next screenshot: the same but for one region within one tile."""
    image = screen.copy()
    left, top = (rng.randrange(count) * side + side // 3 for count in (COLUMNS, ROWS))
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, left + side // 3, top + side // 5), (rng.randrange(120, 250), 180, 160))
    draw.text((left + 2, top + 2), f"OK {rng.randrange(10**6)}", (0, 0, 0), font_size=side // 16)
    return image


def seconds_to_first_token(llm: LLM, screen: Image.Image) -> float:
    """Ask about a screenshot."""
    content = [{"type": "image", "image": screen, "max_dynamic_patch": 12}, {"type": "text", "text": QUESTION}]
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    began = time.perf_counter()
    for _ in llm.stream([{"role": "user", "content": content}], params):
        pass
    return time.perf_counter() - began


def measure(llm: LLM, num_screens: int, seed: int) -> list[tuple[float, float]]:
    """Return the seconds to the first token of each screenshot, and those of processors, and print a row for each."""
    engine, side, rng, times = llm.engine, llm.config.tile_size, random.Random(seed), list[tuple[float, float]]()
    assert isinstance(engine, Engine)
    screen = first_screen(side, rng)
    print(HEAD)
    for number in range(1, num_screens + 1):
        before, used = engine.stats(), time.process_time()
        times.append((seconds_to_first_token(llm, screen), time.process_time() - used))
        after = engine.stats()
        tiles = after.num_encoded_tiles - before.num_encoded_tiles
        tokens = after.num_prefill_tokens - before.num_prefill_tokens
        seconds, processors = times[-1]
        print(f"{number:>6}  {seconds:>9.3f} s  {processors:>8.3f} s  {tiles:>13}  {tokens:>15}", flush=True)
        screen = change(screen, side, rng)
    return times


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a checkpoint; by default the embedded model")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--screens", type=int, default=20, help="at least 2 (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-cache-dir", type=Path, help="a folder that keeps tiles for the next run")
    parser.add_argument("--most", type=float, help="the largest ratio with which it succeeds")
    options = parser.parse_args()
    if options.screens < 2:
        parser.error("--screens must be at least 2")
    llm = LLM(options.model, quantization=options.quantization, image_cache_dir=options.image_cache_dir)
    seconds_to_first_token(llm, Image.new("RGB", (llm.config.tile_size,) * 2))
    ratios = []
    for name, (first, *others) in zip(
        ("first token", "processors"), zip(*measure(llm, options.screens, options.seed), strict=True), strict=True
    ):
        ratios.append(statistics.median(others) / first)
        print(f"{name}: median of the others {statistics.median(others):.3f} s, {ratios[-1]:.3f} of the first")
    sys.exit(0 if options.most is None or ratios[0] <= options.most else 1)


if __name__ == "__main__":
    main()
