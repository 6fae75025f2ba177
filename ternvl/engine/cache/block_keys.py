"""Keys that name the content of the KV cache's blocks, so that equal content is computed once.

A block's key hashes the key of the block before it, its tokens and the image tiles in it. The first block's key also
hashes the content of the adapter and the cache salt. A key therefore stands for the whole prefix up to the end of its
block: two tiles, or two tenants with different salts or adapters, never share a block, and a client cannot make two
prefixes collide. Keys and values depend only on what comes before them, so two images share the blocks up to the first
tile in which they differ. Only where routers are told of the blocks, which know whole images, do keys hold these.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ternvl.engine.request import Request
from ternvl.types import ImageSpan, Prompt

if TYPE_CHECKING:
    from ternvl.lora.adapter import Adapter


class BlockKeys:
    """The keys of one sequence's full blocks, computed as the sequence grows."""

    def __init__(self, request: Request, block_size: int, *, by_tile: bool = True) -> None:
        """`block_size` is in tokens. Unless it is `by_tile`, a key holds whole images, as routers name blocks."""
        self.request = request
        self._images = request.prompt.images
        self._block_size, self._by_tile = block_size, by_tile
        adapter = (
            b"\0" if request.adapter is None else b"\1" + request.adapter.digest
        )  # the prefix byte keeps salts apart from adapters
        self._root = hashlib.sha256(b"ternvl prefix" + adapter + request.cache_salt.encode()).digest()
        self._keys: list[bytes] = []

    def first(self, count: int, token_ids: Sequence[int]) -> list[bytes]:
        """Return the keys of the first `count` blocks; `token_ids` are the sequence's, which must fill these blocks."""
        while len(self._keys) < count:
            start = len(self._keys) * self._block_size
            tokens = token_ids[start : start + self._block_size]
            assert len(tokens) == self._block_size
            self._keys.append(self._key(start, tokens))
        return self._keys[:count]

    def images_in(self, start: int, stop: int) -> list[ImageSpan]:
        """Return the images with tokens in a range of the sequence."""
        return [image for image in self._images if image.start < stop and image.stop > start]

    def _key(self, start: int, tokens: Sequence[int]) -> bytes:
        digest = hashlib.sha256(self._keys[-1] if self._keys else self._root)
        digest.update(array("q", tokens).tobytes())
        for image in self.images_in(start, start + len(tokens)):
            for named in _tiles(image, start, start + len(tokens)) if self._by_tile else (_identity(image, start),):
                digest.update(named)
        return digest.digest()


def with_own_images(request: Request) -> Request:
    """Return the request with digests of images and tiles that include its cache salt, and its adapter if that changes
    features."""
    images = own_images(request.prompt, request.adapter, request.cache_salt)
    if images is request.prompt.images:
        return request
    return replace(request, prompt=replace(request.prompt, images=images))


def own_images(prompt: Prompt, adapter: Adapter | None, salt: str) -> tuple[ImageSpan, ...]:
    """Return a prompt's images with the digests that they have in the caches for an adapter and a salt."""
    changing = adapter if adapter is not None and adapter.touches_images else None
    if changing is None and not salt:
        return prompt.images
    own = hashlib.sha256(b"ternvl image" + (b"\0" if changing is None else b"\1" + changing.digest))
    own.update(salt.encode())
    prefix = own.digest()

    def renamed(digest: bytes) -> bytes:
        return hashlib.sha256(prefix + digest).digest()

    return tuple(
        replace(image, digest=renamed(image.digest), tile_digests=tuple(map(renamed, image.tile_digests)))
        for image in prompt.images
    )


def salt_id(salt: str) -> str | None:
    """Return what stands for a salt outside the engine, from which nobody learns the salt; None without a salt."""
    return hashlib.sha256(b"ternvl salt id" + salt.encode()).hexdigest()[:32] if salt else None


def adapter_id(adapter: Adapter | None) -> int | None:
    """Return a number, below 2^63, of an adapter's content; None without an adapter."""
    return None if adapter is None else int.from_bytes(adapter.digest[:8], "big") >> 1


def _identity(image: ImageSpan, start: int) -> bytes:
    """Return the image and its position relative to the block's start, in fixed length so that it is unambiguous."""
    return image.digest + (image.start - start).to_bytes(8, "big", signed=True)


def _tiles(image: ImageSpan, start: int, stop: int) -> Iterator[bytes]:
    """Yield the tiles of an image with tokens in a block, each with its position as in `_identity`."""
    keys, size = image.tile_keys, image.num_tokens // image.num_tiles
    for tile in image.tiles_after(start):
        first = image.start + tile * size
        if first >= stop:
            return
        yield keys[tile] + (first - start).to_bytes(8, "big", signed=True)
