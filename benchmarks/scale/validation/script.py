"""The load of a validation: requests at fixed times, which a run measures and the simulation predicts."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from PIL import Image as Picture

from benchmarks.live.ask import Seen
from benchmarks.scale.request import Image, Request
from benchmarks.scale.workload import zipf

NUM_IMAGES, NUM_TENANTS = 24, 12
"""Images, and system messages, that come again by Zipf's law."""
IMAGE_SHARE = 0.4
CHAT = "/v1/chat/completions"
BLOCK, TOKENS_PER_TILE = 16, 16
"""Tokens of a block of the KV cache, and of an image's tile in the embedded model."""


@dataclass(frozen=True)
class Item:
    """A request of the script."""

    due: float
    """Seconds since the beginning."""
    body: dict[str, Any]
    key: str
    """What a router by affinity looks at: the image, else the system message."""

    @property
    def data(self) -> bytes:
        """The body as it is sent."""
        return json.dumps(self.body).encode()


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))


def _picture(rng: random.Random) -> dict[str, Any]:
    """Return an image of 224 x 224 pixels, which becomes five tiles of the embedded model."""
    image = Picture.frombytes("RGB", (8, 8), rng.randbytes(192)).resize((224, 224), Picture.Resampling.NEAREST)
    data = io.BytesIO()
    image.save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


class Writer:
    """Writes requests that differ in text, and share images and system messages."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)
        shared = random.Random("shared")
        self._systems = [_digits(shared, 160) for _ in range(NUM_TENANTS)]
        self._images = [_picture(shared) for _ in range(NUM_IMAGES)]

    def item(self, due: float) -> Item:
        """Return the next request."""
        rng = self._rng
        tenant = zipf(rng, NUM_TENANTS)
        content: Any = _digits(rng, rng.choice((200, 500, 1000)))
        key = f"tenant {tenant}"
        if rng.random() < IMAGE_SHARE:
            number = zipf(rng, NUM_IMAGES)
            content, key = [self._images[number], {"type": "text", "text": content}], f"image {number}"
        messages = [{"role": "system", "content": self._systems[tenant]}, {"role": "user", "content": content}]
        body = {
            "messages": messages, "max_tokens": rng.choice((4, 8, 16)), "ignore_eos": True, "stream": True,
            "temperature": 0, "stream_options": {"include_usage": True},
        }  # fmt: skip
        return Item(due, body, key)

    def poisson(self, rate: float, seconds: float) -> list[Item]:
        """Return requests at random times."""
        items, now = [], 0.0
        while (now := now + self._rng.expovariate(rate)) < seconds:
            items.append(self.item(now))
        return items

    def some(self, count: int) -> list[Item]:
        """Return requests without times."""
        return [self.item(0.0) for _ in range(count)]


def rendered(ask: Callable[[str, Any], Seen], items: Sequence[Item]) -> list[Request]:
    """Return what the requests are to a simulation: their blocks and images, as `ask`, a server's, renders them."""
    return [_request(ask, item) for item in items]


def _request(ask: Callable[[str, Any], Seen], item: Item) -> Request:
    answer = ask(CHAT + "/render", {"messages": item.body["messages"]})
    if answer.status != 200:
        raise RuntimeError(f"render answered {answer.status}: {answer.message}")
    found = json.loads(answer.body)
    images = []
    if found["features"]:
        digests = found["features"]["mm_hashes"]["image"]
        for digest, place in zip(digests, found["features"]["mm_placeholders"]["image"], strict=True):
            images.append(Image(digest, place["offset"], place["length"], place["length"] // TOKENS_PER_TILE))
    chain = _chain(found["token_ids"], images)
    return Request(item.due, chain, item.body["max_tokens"], tuple(images), key=item.key)


def _chain(token_ids: Sequence[int], images: Sequence[Image]) -> list[tuple[Hashable, int]]:
    """Return a segment for each block, under a key that stands for all before it, and one for the rest."""
    chain: list[tuple[Hashable, int]] = []
    parent = b""
    for start in range(0, len(token_ids), BLOCK):
        tokens = tuple(token_ids[start : start + BLOCK])
        within = [
            (each.digest, each.start - start) for each in images if start - each.num_tokens < each.start < start + BLOCK
        ]
        parent = blake2b(parent + repr((tokens, within)).encode(), digest_size=12).digest()
        chain.append((parent, len(tokens)))
    return chain


def again(requests: Sequence[Request]) -> list[Request]:
    """Return requests as they were before a simulation."""
    return [replace(each, lease=None, num_computed=0, refused="") for each in requests]
