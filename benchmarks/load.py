"""Puts load on a server with the openai client: makes streamed requests, schedules them, and measures them."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
from openai import AsyncOpenAI
from PIL import Image

SALT_DIGITS = 8
Body = dict[str, Any]


class BenchmarkError(Exception):
    """A setting or a server that makes the measurement impossible."""


@dataclass
class Sample:
    """The measurement of one request: times in seconds, numbers of tokens, and the error if it failed."""

    start: float
    pieces: list[float] = field(default_factory=list)
    end: float = 0.0
    usage: Any = None
    failure: str | None = None

    @property
    def gaps(self) -> list[float]:
        """Seconds between successive pieces."""
        return [after - before for before, after in zip(self.pieces, self.pieces[1:], strict=False)]


def digits(rng: random.Random, count: int) -> str:
    """Return `count` random digits, each of which is one token."""
    return "".join(rng.choices("0123456789", k=count))


def image_part(rng: random.Random, width: int, height: int) -> Body:
    """Return an image of random colours, which no other request has."""
    image = Image.frombytes("RGB", (8, 8), rng.randbytes(192)).resize((width, height), Image.Resampling.NEAREST)
    data = io.BytesIO()
    image.save(data, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()},
    }


def make_body(args: argparse.Namespace, number: int, overhead: int) -> Body:
    """Return the body of request `number`. Its system message is the shared prefix, or different in each request."""
    rng = random.Random(f"{args.seed} {number}")
    shared = digits(random.Random(args.seed), args.shared_prefix)
    system = shared or digits(rng, SALT_DIGITS)
    text = digits(rng, args.prompt_tokens - overhead - len(system))
    width, height = args.image_size
    images = [image_part(rng, width, height) for _ in range(args.images)]
    content = [*images, {"type": "text", "text": text}]
    return {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
        "max_tokens": args.output_tokens,
        "temperature": args.temperature,
    }


async def calibrate(client: AsyncOpenAI, args: argparse.Namespace) -> tuple[str, int, Body]:
    """Return the model's name, the tokens of a prompt without its digits, and the fields that force an answer's length.

    The request also warms the server up.
    """
    model = args.served_model_name or (await client.models.list()).data[0].id
    messages: Any = [{"role": "system", "content": "0" * SALT_DIGITS}, {"role": "user", "content": "0"}]
    forced: Body = {"ignore_eos": True}
    try:
        answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=1, extra_body=forced)
    except openai.BadRequestError:
        forced = {}
        answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=1)
    if answer.usage is None:
        raise BenchmarkError("The server reports no token counts (usage), so it cannot be measured.")
    overhead = answer.usage.prompt_tokens - SALT_DIGITS - 1
    needed = overhead + (args.shared_prefix or SALT_DIGITS) + 1
    if args.prompt_tokens < needed:
        raise BenchmarkError(
            f"--prompt-tokens is {args.prompt_tokens}; with this template it must be at least {needed}."
        )
    return model, overhead, forced


async def ask(client: AsyncOpenAI, model: str, body: Body, forced: Body) -> Sample:
    """Send one request, and measure its streamed answer."""
    sample = Sample(time.perf_counter())
    try:
        stream = await client.chat.completions.create(
            model=model, stream=True, stream_options={"include_usage": True}, extra_body=forced, **body
        )
        async for chunk in stream:
            if any(choice.delta.content for choice in chunk.choices):
                sample.pieces.append(time.perf_counter())
            sample.usage = chunk.usage or sample.usage
        if sample.usage is None:
            sample.failure = "no usage"
    except openai.APIStatusError as error:
        sample.failure = str(error.status_code)
    except openai.APIError as error:
        sample.failure = type(error).__name__
    sample.end = time.perf_counter()
    return sample


async def closed_loop(jobs: Sequence[Any], concurrency: int) -> list[Sample]:
    """Run jobs with `concurrency` clients, each of which starts a job as soon as its last one has ended."""
    waiting = iter(jobs)
    samples: list[Sample] = []

    async def work() -> None:
        for job in waiting:
            samples.append(await job())

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return samples


async def open_loop(jobs: Sequence[Any], rate: float, rng: random.Random) -> list[Sample]:
    """Start jobs at random times (a Poisson process of `rate` per second), whether earlier ones have ended or not."""
    tasks: list[asyncio.Task[Sample]] = []
    due = time.perf_counter()
    for job in jobs:
        due += rng.expovariate(rate)
        await asyncio.sleep(due - time.perf_counter())
        tasks.append(asyncio.create_task(job()))
    return list(await asyncio.gather(*tasks))


async def measure(base_url: str, args: argparse.Namespace) -> Body:
    """Put the load on a server; return the settings and the summary."""
    client = AsyncOpenAI(base_url=base_url, api_key=args.api_key, max_retries=0, timeout=args.timeout)
    async with client:
        model, overhead, forced = await calibrate(client, args)
        bodies = [make_body(args, number, overhead) for number in range(args.requests)]  # before the clock starts

        def job(body: Body) -> Any:
            def start() -> Awaitable[Sample]:
                return ask(client, model, body, forced)

            return start

        jobs = [job(body) for body in bodies]
        begin = time.perf_counter()
        if args.rate is None:
            samples = await closed_loop(jobs, args.concurrency)
        else:
            samples = await open_loop(jobs, args.rate, random.Random(args.seed))
    seconds = time.perf_counter() - begin
    return {"benchmark": "serving", "settings": settings(args, model, forced), **summary(samples, seconds)}


def settings(args: argparse.Namespace, model: str, forced: Body) -> Body:
    """Return the settings for the JSON line."""
    kept = {name: value for name, value in vars(args).items() if name != "api_key"}
    width, height = args.image_size
    return kept | {"image_size": f"{width}x{height}", "model": model, "answers_forced": bool(forced)}


def summary(samples: Sequence[Sample], seconds: float) -> Body:
    """Return counts, rates and percentiles; times are in milliseconds."""
    good = [sample for sample in samples if sample.failure is None]
    details = [sample.usage.prompt_tokens_details for sample in good]
    prompt_tokens = sum(sample.usage.prompt_tokens for sample in good)
    output_tokens = sum(sample.usage.completion_tokens for sample in good)
    return {
        "requests": len(samples),
        "answered": len(good),
        "failures": dict(Counter(sample.failure for sample in samples if sample.failure)),
        "seconds": round(seconds, 3),
        "prompt_tokens": prompt_tokens,
        "cached_tokens": sum((detail and detail.cached_tokens) or 0 for detail in details),
        "output_tokens": output_tokens,
        "requests_per_s": round(len(good) / seconds, 3),
        "output_tokens_per_s": round(output_tokens / seconds, 2),
        "total_tokens_per_s": round((prompt_tokens + output_tokens) / seconds, 2),
        "ttft_ms": spread([sample.pieces[0] - sample.start for sample in good if sample.pieces]),
        "inter_token_ms": spread([gap for sample in good for gap in sample.gaps]),
        "request_ms": spread([sample.end - sample.start for sample in good]),
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and percentiles in milliseconds of values in seconds; None without values."""
    if not values:
        return dict.fromkeys(("mean", "p50", "p95", "p99"))
    ordered = sorted(values)

    def percentile(share: float) -> float:
        low, rest = divmod(share * (len(ordered) - 1), 1)
        high = min(int(low) + 1, len(ordered) - 1)
        return ordered[int(low)] * (1 - rest) + ordered[high] * rest

    found = {
        "mean": sum(ordered) / len(ordered),
        "p50": percentile(0.5),
        "p95": percentile(0.95),
        "p99": percentile(0.99),
    }
    return {name: round(1000 * value, 2) for name, value in found.items()}
