"""What an image or a video of a request may cost. The command line's flags are generated from the fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ternvl.setting import setting


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The limits of an image, and where images and videos may come from. The fields are flags of the command line."""

    max_image_bytes: int = setting(20 * 1024**2, "The most bytes of an encoded image.")
    max_image_pixels: int = setting(100_000_000, "The most pixels of an image.")
    max_images: int = setting(16, "The most images of a request.")
    fetch_timeout: float = setting(5.0, "The most seconds that the download of an image may take.")
    max_redirects: int = setting(3, "The most redirects of an image or video URL; each address is checked.")
    allowed_media_domains: tuple[str, ...] = setting((), "Fetch images and videos only from this domain (repeatable).")
    allow_private_addresses: bool = setting(False, "Also fetch them from loopback and private addresses.")
    allow_local_media: Path | None = setting(None, "Allow file:// URLs of images and videos below this folder.")


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """How videos are sampled, and what one may cost. The fields are flags of the command line."""

    video_frames: int = setting(8, "The number of frames that a video is sampled to if its request does not say.")
    max_video_frames: int = setting(32, "The most frames that all videos of a request are sampled to.")
    max_videos: int = setting(4, "The most videos of a request.")
    max_video_bytes: int = setting(64 * 1024**2, "The most bytes of an encoded video.")
    max_video_pixels: int = setting(16_000_000, "The most pixels of a frame of a video.")
    max_scanned_frames: int = setting(100_000, "The most frames that a video may have.")
    video_fetch_timeout: float = setting(30.0, "The most seconds that the download of a video may take.")
    video_decode_timeout: float = setting(60.0, "The most seconds that decoding the frames of a video may take.")
