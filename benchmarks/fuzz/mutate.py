"""Makes malformed and hostile requests from valid ones: the same ones for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.fuzz.requests import Request, valid_requests


@dataclass(frozen=True)
class Attack:
    """Bytes to send on one connection, and how they were made."""

    name: str
    sent: bytes
    is_cut: bool = False
    """Whether the client stops sending before a request's end."""


STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 1e-320, 10**30, -(2**63), 2**31, 2**64),
    *(
        "",
        " ",
        "a",
        "\0",
        "\x7f",
        "💥" * 9,
        "\ud800",
        "a" * 5000,
        "<|im_end|>",
        "<image>",
        "data:,",
        "file:///etc/passwd",
    ),
    *(
        "http://127.0.0.1:1/",
        "http://[::1]/",
        "data:image/png;base64,AAAA",
        "{}",
        "$ref",
        "../..",
        "%00",
        "NaN",
        "é" * 50,
    ),
    *([], {}, [[]], [{}], [None], {"": ""}, {"type": "object"}, {"$ref": "#"}, {"$ref": "http://127.0.0.1:1/x"}),
    *(
        {"type": "text"},
        {"type": "image_url", "image_url": {"url": ""}},
        {"role": "user"},
        {"pattern": "(a?){99}a{99}"},
    ),
    *([0] * 300, ["a"] * 300, {str(number): number for number in range(300)}, [[[[[[[[[]]]]]]]]]),
)


def mutated(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """Return a JSON value with one change somewhere."""
    if not isinstance(value, dict | list) or not value or (depth and rng.random() < 0.25):
        return rng.choice(STRANGE)
    if isinstance(value, list):
        index = rng.randrange(len(value))
        kind = rng.randrange(5)
        if kind == 0:
            return value[:index] + value[index + 1 :]
        if kind == 1:
            return value + value * rng.randrange(1, 40)
        return [*value[:index], mutated(value[index], rng, depth + 1), *value[index + 1 :]]
    key = rng.choice(list(value))
    kind = rng.randrange(6)
    if kind == 0:
        return {name: each for name, each in value.items() if name != key}
    if kind == 1:
        return {
            **value,
            rng.choice(("", "x" * 3000, "stream", "n", "max_tokens", key.upper(), "\0")): rng.choice(STRANGE),
        }
    return {**value, key: mutated(value[key], rng, depth + 1)}


def head(method: str, path: str, *headers: str) -> bytes:
    """Return a request's first line and headers, without the empty line."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: fuzz", *headers, ""]).encode("latin-1", "replace")


def whole(method: str, path: str, body: bytes | None) -> bytes:
    """Return a well-formed request."""
    if body is None:
        return head(method, path) + b"\r\n"
    return head(method, path, "Content-Type: application/json", f"Content-Length: {len(body)}") + b"\r\n" + body


def encoded(value: Any, rng: random.Random) -> bytes:
    """Return the JSON of a value, in UTF-8 or as escapes."""
    if rng.random() < 0.5:
        return json.dumps(value).encode()
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def damaged(data: bytes, rng: random.Random, most: int = 4) -> bytes:
    """Return bytes with a few of them changed, removed, repeated or put in."""
    for _ in range(rng.randrange(1, most + 1)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((1, 1, 2, 7, 40)))
        put = rng.choice(
            (rng.randbytes(1), rng.randbytes(5), b"\r\n", b"\n", b"\0", b":", b" ", b"\xff", data[at:to] * 3)
        )
        data = rng.choice((data[:at] + put + data[to:], data[:at] + data[to:], data[:at] + put + data[at:]))
    return data


def change_json(request: Request, rng: random.Random) -> Attack:
    """Change one or more values of a body."""
    method, path, body = request
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        body = mutated(body, rng)
    return Attack("json", whole("POST" if body is not None else method, path, encoded(body, rng)))


def change_body(request: Request, rng: random.Random) -> Attack:
    """Change bytes of a body, whose length stays right."""
    method, path, body = request
    return Attack("body", whole(method, path, damaged(encoded(body, rng), rng)))


def change_head(request: Request, rng: random.Random) -> Attack:
    """Change bytes of a head."""
    method, path, body = request
    top, end, rest = whole(method, path, None if body is None else encoded(body, rng)).partition(b"\r\n\r\n")
    return Attack("head", damaged(top, rng, 2) + end + rest, is_cut=True)


HEADERS = (
    *("Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999", "Transfer-Encoding: chunked"),
    *("Transfer-Encoding: gzip", "Content-Encoding: gzip", "Expect: 100-continue", "Expect: x", "Connection: upgrade"),
    *(
        "Upgrade: h2c",
        "Upgrade: websocket",
        "Content-Type: text/plain",
        "Content-Type: multipart/form-data; boundary=x",
    ),
    *("Content-Type: application/json; charset=utf-16", "Authorization: Bearer \xff\xfe", "x-api-key: " + "a" * 9000),
    *(
        "x-request-id: a b",
        "x-request-id: " + "é" * 200,
        "traceparent: 00-x",
        "Range: bytes=0-",
        "Origin: null",
        "TE: trailers",
    ),
    *("Host: other", "X: " + "a" * 40_000, "Cookie: " + ";" * 5000, "anthropic-version: x", "Accept: */*;q=x", "X:"),
)


def add_headers(request: Request, rng: random.Random) -> Attack:
    """Add headers, of which some contradict the others."""
    method, path, body = request
    content = b"" if body is None else encoded(body, rng)
    more = rng.sample(HEADERS, rng.choice((1, 1, 2, 3)))
    own = ["Content-Type: application/json", f"Content-Length: {len(content)}"] if rng.random() < 0.7 else []
    method = rng.choice((method, method, method, "PUT", "HEAD", "OPTIONS", "TRACE", "X" * 300, "post"))
    return Attack("headers", head(method, path, *own, *more) + b"\r\n" + content, is_cut=True)


def change_path(request: Request, rng: random.Random) -> Attack:
    """Ask for a path that nobody has, or that looks like another one."""
    method, path, body = request
    paths: tuple[str, ...] = (
        path + "/",
        path + "?a=" + "b" * 999,
        "/" + path,
        path.replace("/", "//"),
        path + "%00",
        path + "/../..",
    )
    paths += (
        path.upper(),
        "*",
        "http://other" + path,
        path + "#x",
        "/%ff%fe",
        "/" + "a" * 20_000,
        path + ";x=1",
        "/v1/%2e%2e",
    )
    return Attack("path", whole(method, rng.choice(paths), None if body is None else encoded(body, rng)))


def send_chunks(request: Request, rng: random.Random) -> Attack:
    """Send a body in chunks, most of which are malformed."""
    method, path, body = request
    content, pieces = encoded(body, rng), []
    while content:
        size = rng.randrange(1, len(content) + 1)
        shown = rng.choice(
            (f"{size:x}", f"{size:X}", f"0{size:x}", f"{size:x};a=b", f"{size:x} ", f"+{size:x}", "fffffffff")
        )
        shown = shown if rng.random() < 0.3 else f"{size:x}"
        pieces.append(shown.encode() + rng.choice((b"\r\n", b"\r\n", b"\r\n", b"\n")) + content[:size] + b"\r\n")
        content = content[size:]
    end = rng.choice((b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n", b"", b"0\r\nContent-Length: 3\r\n\r\nabc"))
    top = head(method, path, "Content-Type: application/json", "Transfer-Encoding: chunked")
    return Attack("chunks", top + b"\r\n" + b"".join(pieces) + end, is_cut=True)


def cut(request: Request, rng: random.Random) -> Attack:
    """Stop in the middle of a request."""
    method, path, body = request
    data = whole(method, path, None if body is None else encoded(body, rng))
    return Attack("cut", data[: rng.randrange(len(data))], is_cut=True)


def pipeline(request: Request, rng: random.Random) -> Attack:
    """Send several requests at once; the last ones may be changed."""
    method, path, body = request
    good = whole(method, path, None if body is None else encoded(body, rng))
    others = [whole("GET", "/health", None), good, damaged(good, rng)]
    return Attack("pipeline", good + b"".join(rng.choices(others, k=rng.randrange(1, 5))), is_cut=True)


def noise(_: Request, rng: random.Random) -> Attack:
    """Send bytes that are no HTTP."""
    return Attack("noise", rng.randbytes(rng.randrange(1, 3000)) + b"\r\n\r\n", is_cut=True)


KINDS: tuple[tuple[int, Callable[[Request, random.Random], Attack]], ...] = (
    *((12, change_json), (4, change_body), (4, change_head), (3, add_headers), (1, change_path)),
    *((3, send_chunks), (1, cut), (2, pipeline), (1, noise)),
)
"""The kinds of attacks, with their shares."""
_WITH_BODY = (change_json, change_body, send_chunks)


def attack(seed: int, number: int) -> Attack:
    """Return attack `number` of a seed."""
    rng = random.Random(f"{seed} {number}")
    make = rng.choices([kind for _, kind in KINDS], [share for share, _ in KINDS])[0]
    requests = [each for each in valid_requests() if each[2] is not None or make not in _WITH_BODY]
    return make(rng.choice(requests), rng)
