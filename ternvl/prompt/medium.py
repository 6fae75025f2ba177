"""What an image and a video have in common when they are fetched: their limits, and how errors speak of them."""

from __future__ import annotations

from dataclasses import dataclass

from ternvl.errors import ImageError, MediaError, VideoError
from ternvl.limits import ImageLimits, VideoLimits


@dataclass(frozen=True, slots=True)
class Medium:
    """The kind of what is fetched, as the class of its errors, and the limits of this kind."""

    error: type[MediaError]
    max_bytes: int
    fetch_timeout: float

    @property
    def kind(self) -> str:
        """What messages call it: "image" or "video"."""
        return self.error.kind

    def invalid_url(self, name: str, reason: str) -> MediaError:
        """Return the error for a URL that cannot be used. The errors begin with `name`, the name of the medium."""
        return self.error(f"{name} {reason}.", code=f"invalid_{self.kind}_url")

    def not_allowed(self, name: str, reason: str) -> MediaError:
        """Return the error for a place that media may not come from."""
        return self.error(f"{name} {reason}.", code=f"{self.kind}_not_allowed")

    def not_fetched(self, name: str, reason: str) -> MediaError:
        """Return the error for a download that failed."""
        return self.error(f"{name} could not be fetched: {reason}.", code=f"{self.kind}_not_fetched")

    def unreadable(self, name: str) -> MediaError:
        """Return the error for a local file that cannot be read."""
        return self.error(f"{name} is a file that cannot be read.", code=f"{self.kind}_not_fetched")

    def too_large(self, name: str) -> MediaError:
        """Return the error for too many bytes."""
        article = "an" if self.kind == "image" else "a"
        return self.error(
            f"{name} is larger than {self.max_bytes} bytes, the most that {article} {self.kind} may have.",
            code=f"{self.kind}_too_large",
            too_large=True,
        )


def image_medium(limits: ImageLimits) -> Medium:
    """Return images as a medium."""
    return Medium(ImageError, limits.max_image_bytes, limits.fetch_timeout)


def video_medium(limits: VideoLimits) -> Medium:
    """Return videos as a medium."""
    return Medium(VideoError, limits.max_video_bytes, limits.video_fetch_timeout)
