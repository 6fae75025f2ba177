"""Measure what the next screenshot costs when only a region of it has changed.

    python -m benchmarks.screens
    python -m benchmarks.screens DIR --quantization int8 --screens 5

It makes a series of screenshots that are cut into 12 tiles and a thumbnail. From one to the next, a region within one
tile changes, so two tiles are new: that tile and the thumbnail. Each screenshot is asked about once, in a conversation
of its own. A row has the seconds to the first token from the decoded image on, and what was computed. The last line is
the median of the second to the last screenshot divided by the first; `--most` makes a larger ratio the exit code 1.
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

COLUMNS, ROWS, SIDE = 4, 3, 448
QUESTION = "Where is the button?"
HEAD = f"{'screen':>6}  {'first token':>11}  {'tiles encoded':>13}  {'tokens computed':>15}"


def first_screen(rng: random.Random) -> Image.Image:
    """Return a screenshot of windows, each with some lines."""
    image = Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE), (226, 230, 236))
    draw = ImageDraw.Draw(image)
    for column in range(COLUMNS):
        for row in range(ROWS):
            left, top = column * SIDE + 20, row * SIDE + 20
            draw.rectangle((left, top, left + 400, top + 380), (250, 250, 250), (90, 90, 90), 2)
            for line in range(8):
                text = f"{column}.{row}.{line} {rng.randrange(10**8)}"
                draw.text((left + 16, top + 16 + 40 * line), text, (20, 20, 20), font_size=20)
    return image


def change(screen: Image.Image, rng: random.Random) -> Image.Image:
    """Return the next screenshot: the same but for one region within one tile."""
    image = screen.copy()
    left, top = rng.randrange(COLUMNS) * SIDE + 120, rng.randrange(ROWS) * SIDE + 160
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, left + 200, top + 90), (rng.randrange(120, 250), 180, 160))
    draw.text((left + 12, top + 30), f"OK {rng.randrange(10**6)}", (0, 0, 0), font_size=28)
    return image


def seconds_to_first_token(llm: LLM, screen: Image.Image) -> float:
    """Ask about a screenshot."""
    content = [{"type": "image", "image": screen, "max_dynamic_patch": 12}, {"type": "text", "text": QUESTION}]
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    began = time.perf_counter()
    for _ in llm.stream([{"role": "user", "content": content}], params):
        pass
    return time.perf_counter() - began


def measure(llm: LLM, num_screens: int, seed: int) -> list[float]:
    """Return the seconds to the first token of each screenshot, and print a row for each."""
    engine, rng, times = llm.engine, random.Random(seed), list[float]()
    assert isinstance(engine, Engine)
    screen = first_screen(rng)
    print(HEAD)
    for number in range(1, num_screens + 1):
        before = engine.stats()
        times.append(seconds_to_first_token(llm, screen))
        after = engine.stats()
        tiles = after.num_encoded_tiles - before.num_encoded_tiles
        tokens = after.num_prefill_tokens - before.num_prefill_tokens
        print(f"{number:>6}  {times[-1]:>9.3f} s  {tiles:>13}  {tokens:>15}", flush=True)
        screen = change(screen, rng)
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
    warm = Image.new("RGB", (SIDE, SIDE))
    seconds_to_first_token(llm, warm)
    first, *others = measure(llm, options.screens, options.seed)
    ratio = statistics.median(others) / first
    print(f"median of the others {statistics.median(others):.3f} s, {ratio:.3f} of the first")
    sys.exit(0 if options.most is None or ratio <= options.most else 1)


if __name__ == "__main__":
    main()
