"""Fetches, decodes and cuts the images and videos of a conversation into tiles, several at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from threading import BoundedSemaphore, Lock

import numpy as np
from PIL import Image

from ternvl.errors import MediaError, RequestError, VideoError
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.prompt.decoding.pool import DecoderPool
from ternvl.prompt.fetch import fetch
from ternvl.prompt.images import Tiles, decode_tiles, to_rgb, to_tiles
from ternvl.prompt.medium import video_medium
from ternvl.prompt.parts import ImageInput, Media, Sampling, VideoInput
from ternvl.prompt.tiling import TileSettings
from ternvl.prompt.timing.timeline import stage
from ternvl.prompt.video import process
from ternvl.workers.threads import in_parallel
from ternvl.workers.turns import Slot, Turns

MAX_DYNAMIC_PATCH = 64
"""The most tiles, without the thumbnail, that one image may be cut into by any setting."""

_WORKERS = 4
"""The images of a request that are fetched and decoded at the same time."""
_FETCHES = (48, 32, 16)
"""The most images that are being fetched or, once fetched, decoded: in all, of a client, and from a host and port."""
_VIDEO_FETCHES = (8, 4, 4)
"""The same for videos, apart, so that images do not wait for videos."""
_SAMPLERS = 2
"""The most videos that are decoded at the same time, each with two threads."""
_COUNTED = np.empty((0, 0, 3), np.uint8)
"""What stands for a tile that is counted and not kept."""
_FRAME_LIST = "data:video/jpeg;base64,"
"""How vLLM's clients begin a URL that holds frames, which are images in base64 with commas between them."""


@dataclass(frozen=True, slots=True)
class NamedMedia:
    """An image or a video of a conversation. `name` is what errors call it, `param` the path of its field."""

    media: Media
    name: str
    param: str


class Room:
    """How many tiles of a prompt are kept. Further ones are counted alone, so that they take no memory."""

    def __init__(self, num_tiles: int | None) -> None:
        """None keeps all tiles."""
        self._left = num_tiles
        self._lock = Lock()

    def keep(self, tiles: Tiles) -> Tiles:
        """Return tiles, or as many that hold nothing if there is no room for them."""
        if self._left is None:
            return tiles
        with self._lock:
            self._left -= len(tiles)
            return tiles if self._left >= 0 else [_COUNTED] * len(tiles)


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose images are loaded. Origins of the same client, and those of the same request, share their part of slots."""

    client: str
    room: Room
    request: str = field(default_factory=token_hex)


class MediaLoader:
    """Loads images and videos as tiles, within limits. It is thread-safe, and blocks while they are fetched.

    Images are decoded by the worker processes of a pool or, without one, in this process.
    """

    def __init__(self, images: ImageLimits, videos: VideoLimits, pool: DecoderPool | None = None) -> None:
        self._images = images
        self._videos = videos
        self._pool = pool
        self._decoding = BoundedSemaphore(_WORKERS)  # shared by all calls: a large image takes hundreds of MB
        self._fetching = Turns(*_FETCHES)
        self._fetching_videos = Turns(*_VIDEO_FETCHES)
        self._sampling = Turns(_SAMPLERS, _SAMPLERS if pool is None else _SAMPLERS - 1)

    def close(self) -> None:
        """Give up all images and videos that wait, and end the pool."""
        for turns in (self._fetching, self._fetching_videos, self._sampling):
            turns.close()
        if self._pool is not None:
            self._pool.close()

    def resolve(self, videos: Sequence[VideoInput], asked: Sampling, path: str) -> list[VideoInput]:
        """Return the videos of a prompt with their numbers of frames, and lists of frames as such.

        `asked` is the sampling that the request asks for, `path` what it calls the conversation. Raises RequestError
        for a number that is out of range.
        """
        resolved = [self._resolve(video, asked, len(videos)) for video in videos]
        total, most = sum(video.sampling.num_frames or 0 for video in resolved), self._videos.max_video_frames
        if total > most:
            raise RequestError(f"{path} asks for {total} frames of videos; a request may have {most}.", param=path)
        return resolved

    def _resolve(self, video: VideoInput, asked: Sampling, num_videos: int) -> VideoInput:
        most = self._videos.max_video_frames
        source = _listed(video.source, most)
        if isinstance(source, tuple):
            if not 1 <= len(source) <= most or video.sampling.num_frames is not None:
                rule = f"a list of frames is not sampled, and has from 1 to {most} of them"
                raise RequestError(f"{video.path or 'A video'} cannot be used: {rule}.", param=video.path)
            return replace(video, source=source, sampling=Sampling(len(source)))
        sampling = video.sampling.or_else(asked)
        default = self._videos.video_frames if sampling.fps is None else max(1, most // num_videos)
        count = default if sampling.num_frames is None else sampling.num_frames
        if not 1 <= count <= most:
            is_own = video.sampling.num_frames is not None
            param = f"{_owner(video.path)}.num_frames".lstrip(".") if is_own else "media_io_kwargs.video.num_frames"
            raise RequestError(f"{param} is {count}; it must be from 1 to {most}.", param=param)
        return replace(video, sampling=Sampling(count, sampling.fps))

    def load(
        self, media: Sequence[NamedMedia], settings: TileSettings, client: str = "", most_tiles: int | None = None
    ) -> list[list[Tiles]]:
        """Return the tiles of each image, a list of one, and of each frame of each video.

        Equal images and videos are loaded once. Tiles beyond `most_tiles`, by default none, hold nothing. `client` is
        who asks; slots go round the clients. Raises MediaError, and OverloadedError if there is no slot for long.
        """
        split = [_split(each) for each in media]
        distinct: dict[object, NamedMedia] = {}
        for each in (named for group in split for named in group):
            distinct.setdefault(_key(each.media), each)
        load = partial(self._load, settings=settings, origin=Origin(client, Room(most_tiles)))
        loaded = dict(zip(distinct, in_parallel(load, list(distinct.values()), _WORKERS, "image"), strict=True))
        return [[cut for each in group for cut in loaded[_key(each.media)]] for group in split]

    def _load(self, named: NamedMedia, settings: TileSettings, origin: Origin) -> list[Tiles]:
        try:
            own = settings_of(named.media, settings, named.name)
            if isinstance(named.media, VideoInput):
                return self._frames(named.media, own, named.name, origin)
            return [origin.room.keep(self._tile(named.media, own, named.name, origin))]
        except MediaError as error:
            error.param = named.param
            raise

    def _tile(self, image: ImageInput, settings: TileSettings, name: str, origin: Origin) -> Tiles:
        if not isinstance(image.source, str):
            return to_tiles(to_rgb(image.source, name), settings, name)
        with Slot(self._fetching, name) as slot:  # also while it is decoded, to bound the bytes that are held
            data = fetch(image.source, self._images, name, visit=partial(slot.take, origin.client))
            with stage("decode image"):
                return self._decode(data, settings, name, origin)

    def _decode(self, data: bytes, settings: TileSettings, name: str, origin: Origin) -> Tiles:
        if self._pool is not None:
            return self._pool.decode(data, settings, name, origin.client, origin.request)
        with self._decoding:
            return decode_tiles(data, settings, self._images, name)

    def _frames(self, video: VideoInput, settings: TileSettings, name: str, origin: Origin) -> list[Tiles]:
        assert not isinstance(video.source, tuple)

        def cut(frame: Image.Image) -> Tiles:
            return origin.room.keep(to_tiles(frame, settings, name, VideoError))

        with Slot(self._fetching_videos, name) as slot:
            source: bytes | Path | str = video.source
            if isinstance(source, str):
                medium, visit = video_medium(self._videos), partial(slot.take, origin.client)
                source = fetch(source, self._images, name, medium, visit)
            with stage("decode video"), self._sampling.turn(name, origin.client):
                return process.sample(source, video.sampling, self._videos, name, cut)


def settings_of(media: Media, settings: TileSettings, name: str) -> TileSettings:
    """Return the settings of an image or a frame: its own numbers of tiles, else one tile or those of the request.

    Raises RequestError for a number that is out of range.
    """
    owner, least, most = _owner(name), media.min_dynamic_patch, media.max_dynamic_patch
    if most is None:
        is_one = isinstance(media, VideoInput) or media.detail == "low"
        most = 1 if is_one else settings.max_num
    in_range(most, owner=owner)
    if least is None:
        return replace(settings, min_num=min(settings.min_num, most), max_num=most)
    if in_range(least, "min_dynamic_patch", owner) > most:
        param = f"{owner}.min_dynamic_patch"
        raise RequestError(f"{param} is {least}, more than the {most} tiles of max_dynamic_patch.", param=param)
    return replace(settings, min_num=least, max_num=most)


def in_range(count: int, name: str = "max_dynamic_patch", owner: str = "") -> int:
    """Return a number of tiles. Raises RequestError, which names it as a field of `owner`, if it is out of range."""
    is_integer = isinstance(count, int) and not isinstance(count, bool)
    if not is_integer or not 1 <= count <= MAX_DYNAMIC_PATCH:
        param = f"{owner}.{name}" if owner else name
        raise RequestError(f"{param} is {count!r}; it must be from 1 to {MAX_DYNAMIC_PATCH}.", param=param)
    return count


def _owner(path: str) -> str:
    """Return the path of the object that the field of a path is in."""
    return path.rpartition(".")[0] or path


def _listed(source: str | Path | tuple[str, ...], most: int) -> str | Path | tuple[str, ...]:
    """Return the URLs of the frames that a URL of vLLM's form holds, one too many if there are more than `most`."""
    if not isinstance(source, str) or not source.startswith(_FRAME_LIST):
        return source
    frames = source.removeprefix(_FRAME_LIST).split(",", most)
    return tuple(f"data:image/jpeg;base64,{frame}" for frame in frames)


def _split(named: NamedMedia) -> list[NamedMedia]:
    """Return the frames of a list as images; anything else as it is."""
    video = named.media
    if not isinstance(video, VideoInput) or not isinstance(video.source, tuple):
        return [named]
    tiles_of_frame = video.min_dynamic_patch, video.max_dynamic_patch or 1
    return [
        NamedMedia(ImageInput(url, "auto", *tiles_of_frame), f"{named.name}[{index}]", named.param)
        for index, url in enumerate(video.source)
    ]


def _key(media: Media) -> object:
    """Return what images or videos have in common that give the same tiles."""
    if isinstance(media, ImageInput) and isinstance(media.source, Image.Image):
        return id(media.source), media.detail, media.min_dynamic_patch, media.max_dynamic_patch
    return media
