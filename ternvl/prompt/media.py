"""Fetches, decodes and cuts the images and videos of a conversation into tiles, several at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import BoundedSemaphore

from PIL import Image

from ternvl.config import ImageLimits, ModelConfig, VideoLimits
from ternvl.errors import MediaError, RequestError
from ternvl.prompt.fetch import fetch
from ternvl.prompt.images import decode, to_rgb
from ternvl.prompt.medium import video_medium
from ternvl.prompt.parts import ImageInput, Media, Sampling, VideoInput
from ternvl.prompt.tiling import tiles
from ternvl.prompt.video import process

MAX_DYNAMIC_PATCH = 64
"""The most tiles, without the thumbnail, that one image may be cut into by any setting."""

Tiles = list[Image.Image]

_WORKERS = 4
_SAMPLERS = 2
"""The most videos that are decoded at the same time, each with two threads."""
_FRAME_LIST = "data:video/jpeg;base64,"
"""How vLLM's clients begin a URL that holds frames, which are images in base64 with commas between them."""


@dataclass(frozen=True, slots=True)
class TileSettings:
    """How the images of one prompt are cut into tiles."""

    min_num: int
    max_num: int
    thumbnail: bool


@dataclass(frozen=True, slots=True)
class NamedMedia:
    """An image or a video of a conversation. `name` is what errors call it, `param` the path of its field."""

    media: Media
    name: str
    param: str


class MediaLoader:
    """Loads images and videos as tiles, within limits. It is thread-safe, and blocks while they are fetched."""

    def __init__(self, config: ModelConfig, images: ImageLimits, videos: VideoLimits) -> None:
        self._config = config
        self._images = images
        self._videos = videos
        self._decoding = BoundedSemaphore(_WORKERS)  # shared by all calls: a large image takes hundreds of MB
        self._sampling = BoundedSemaphore(_SAMPLERS)  # apart, so that images do not wait for videos

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

    def load(self, media: Sequence[NamedMedia], settings: TileSettings) -> list[list[Tiles]]:
        """Return the tiles of each image, a list of one, and of each frame of each video. Raises MediaError."""
        split = [_split(each) for each in media]
        flat = [each for group in split for each in group]
        if len(flat) < 2:
            loaded = iter([self._load(each, settings) for each in flat])
        else:
            with ThreadPoolExecutor(_WORKERS, thread_name_prefix="image") as pool:
                loaded = iter(list(pool.map(lambda each: self._load(each, settings), flat)))
        return [[cut for _ in group for cut in next(loaded)] for group in split]

    def _load(self, named: NamedMedia, settings: TileSettings) -> list[Tiles]:
        try:
            own = settings_of(named.media, settings, named.name)
            if isinstance(named.media, VideoInput):
                return self._frames(named.media, own, named.name)
            return [self._tile(named.media, own, named.name)]
        except MediaError as error:
            error.param = named.param
            raise

    def _tile(self, image: ImageInput, settings: TileSettings, name: str) -> Tiles:
        if isinstance(image.source, str):
            data = fetch(image.source, self._images, name)
            with self._decoding:
                return self._cut(decode(data, self._images, name), settings)
        return self._cut(to_rgb(image.source, name), settings)

    def _frames(self, video: VideoInput, settings: TileSettings, name: str) -> list[Tiles]:
        assert not isinstance(video.source, tuple)
        source: bytes | Path
        if isinstance(video.source, str):
            source = fetch(video.source, self._images, name, video_medium(self._videos))
        else:
            source = video.source
        with self._sampling:
            return process.sample(source, video.sampling, self._videos, name, lambda frame: self._cut(frame, settings))

    def _cut(self, picture: Image.Image, settings: TileSettings) -> Tiles:
        return tiles(
            picture,
            min_num=settings.min_num,
            max_num=settings.max_num,
            side=self._config.tile_size,
            thumbnail=settings.thumbnail,
        )


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
