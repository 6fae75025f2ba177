"""Measure how fast a server answers many clients, with streamed requests of the openai client.

    python benchmarks/serving.py --concurrency 8 --requests 64           # closed loop, on a new server
    python benchmarks/serving.py --rate 2 --requests 64                  # open loop: Poisson arrivals, 2 a second
    python benchmarks/serving.py --base-url http://127.0.0.1:8000/v1 --images 1 --image-size 1000x747
    python benchmarks/serving.py --model DIR -- --max-num-seqs 32        # flags after -- are passed to `ternvl serve`

Prompts are random digits, each of which is a token, and images have random colours, so requests share no prefix unless
--shared-prefix is given. Reported are the time to the first token (TTFT), the time between two pieces of a stream
(inter-token latency; a piece is a token, unless the server sends several at once), tokens/s, requests/s and failures.
The last line is JSON with all settings. The exit code is 1 if no request was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openai
from load import BenchmarkError, measure

START_SECONDS = 600


def table(result: dict[str, Any]) -> str:
    """Return the result as a table of text."""
    rows = [f"{'':<22}" + "".join(f"{name:>12}" for name in ("mean", "p50", "p95", "p99"))]
    for name, label in (
        ("ttft_ms", "TTFT"),
        ("inter_token_ms", "inter-token latency"),
        ("request_ms", "whole request"),
    ):
        shown = ("-" if value is None else f"{value:.1f} ms" for value in result[name].values())
        rows.append(f"{label:<22}" + "".join(f"{value:>12}" for value in shown))
    failures = ", ".join(f"{count} x {name}" for name, count in result["failures"].items()) or "none"
    return "\n".join(
        [
            f"{result['answered']} of {result['requests']} requests in {result['seconds']:.1f} s; failures: {failures}",
            f"{result['requests_per_s']:.2f} requests/s, {result['output_tokens_per_s']:.1f} output tokens/s, "
            f"{result['total_tokens_per_s']:.1f} tokens/s with prompts ({result['cached_tokens']} of them cached)",
            *rows,
        ]
    )


@contextmanager
def server(model: str | None, flags: Sequence[str]) -> Iterator[str]:
    """Run a server on a free loopback port; yield its base URL."""
    command = [sys.executable, "-m", "ternvl", "serve", *([model] if model else []), "--port", "0"]
    with subprocess.Popen([*command, "--log-level", "warning", *flags], stdout=subprocess.PIPE, text=True) as process:
        patience = threading.Timer(START_SECONDS, process.kill)
        patience.start()
        assert process.stdout is not None
        try:
            found = next((url for line in process.stdout if (url := re.search(r"served at (\S+)", line))), None)
            patience.cancel()
            if found is None:
                raise BenchmarkError("The server did not start; its output is above.")
            yield found[1]
        finally:
            patience.cancel()
            process.terminate()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; invalid settings end the process with status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--base-url", help="URL of a running server, such as http://127.0.0.1:8000/v1")
    where.add_argument("--model", help="model for a new server; by default the embedded model")
    parser.add_argument(
        "--served-model-name", help="name of the model in requests; by default the first that the server lists"
    )
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", "none"))
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=positive, default=1, help="number of clients of the closed loop")
    loop.add_argument("--rate", type=above_zero, help="requests per second of the open loop")
    parser.add_argument("--requests", type=positive, default=16)
    parser.add_argument(
        "--prompt-tokens", type=positive, default=128, help="number of text tokens of a prompt, without images"
    )
    parser.add_argument("--output-tokens", type=positive, default=64)
    parser.add_argument("--shared-prefix", type=int, default=0, help="number of digits that all prompts begin with")
    parser.add_argument("--images", type=int, default=0, help="number of images per request")
    parser.add_argument("--image-size", type=size, default=(448, 448), metavar="WxH")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--timeout", type=above_zero, default=600.0, help="time limit of a request in seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(given[:split])
    args.server_flags = given[split + 1 :]
    if args.base_url and args.server_flags:
        parser.error("flags after -- are for a new server, so they cannot be combined with --base-url")
    return args


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def above_zero(text: str) -> float:
    """Parse a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def size(text: str) -> tuple[int, int]:
    """Parse a size such as 1000x747."""
    width, _, height = text.partition("x")
    return positive(width), positive(height)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    args = parse(arguments)
    try:
        if args.base_url:
            result = asyncio.run(measure(args.base_url, args))
        else:
            with server(args.model, args.server_flags) as base_url:
                result = asyncio.run(measure(base_url, args))
    except (BenchmarkError, openai.APIError) as error:
        print(f"serving.py: {error}", file=sys.stderr)
        return 1
    print(table(result))
    print(json.dumps(result))
    return 0 if result["answered"] else 1


if __name__ == "__main__":
    sys.exit(main())
