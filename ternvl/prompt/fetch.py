"""Fetches the bytes of an image URL: `data:`, `http:` or `https:` from allowed addresses, `file:` in one folder."""

from __future__ import annotations

import base64
import binascii
import errno
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from ternvl.config import ImageLimits
from ternvl.errors import ImageError
from ternvl.files import read_regular
from ternvl.prompt import urls
from ternvl.prompt.download import Download

_BASE64 = re.compile(r";\s*base64\s*", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n\f\v")


def fetch(url: str, limits: ImageLimits, name: str) -> bytes:
    """Return the encoded bytes of an image. A download blocks for at most `limits.fetch_timeout` seconds.

    `name` names the image in errors. Raises ImageError if the URL is malformed or not allowed, if the image is larger
    than `limits.max_image_bytes`, and if it cannot be fetched.
    """
    url = url.lstrip()
    match url[:8].partition(":")[0].lower():
        case "data":
            return _from_data(url, limits, name)
        case "http" | "https":
            return _from_network(url, limits, name)
        case "file":
            return _from_file(url, limits, name)
    raise ImageError(
        f"{name} has a URL that does not begin with data:, http:, https: or file:.", code="invalid_image_url"
    )


def _from_data(url: str, limits: ImageLimits, name: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not _BASE64.fullmatch(header[header.rfind(";") :]):
        raise _invalid(name, 'has a URL that does not have the form "data:image/...;base64,..."')
    if len(payload) > 4 * limits.max_image_bytes + 1024:  # thrice its base64 form: refused without any work
        raise _too_large(name, limits)
    if "%" in payload:
        payload = unquote(payload)
    text = payload.translate(_URL_SAFE).rstrip("=")
    if len(text) * 3 // 4 > limits.max_image_bytes:
        raise _too_large(name, limits)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(name, "contains data that is not base64") from None


def _from_network(url: str, limits: ImageLimits, name: str) -> bytes:
    download = Download(limits, name)
    target = _check_url(url, limits, name)
    for _ in range(limits.max_redirects + 1):
        answer = download.get(target)
        if isinstance(answer, bytes):
            return answer
        target = _check_url(str(answer), limits, name)
    raise ImageError(
        f"{name} could not be fetched: it redirects more than {limits.max_redirects} times.", code="image_not_fetched"
    )


def _check_url(text: str, limits: ImageLimits, name: str) -> httpx.URL:
    """Return the normalised URL. Refuse one that parsers disagree about, and domains that are not allowed."""
    try:
        url = urls.normalise(text)
    except urls.URLError as error:
        raise _invalid(name, f"has a URL that {error}") from None
    host, domains = url.raw_host.decode("ascii").lower(), limits.allowed_media_domains
    if domains and not any(_is_in_domain(host, domain) for domain in domains):
        raise ImageError(
            f"{name} could not be fetched: images from {host} are not allowed.",
            code="image_not_allowed",
        )
    return url


def _is_in_domain(host: str, domain: str) -> bool:
    host, domain = host.removesuffix("."), domain.lower().strip(".")
    return host == domain or host.endswith("." + domain)


def _from_file(url: str, limits: ImageLimits, name: str) -> bytes:
    if limits.allow_local_media is None:
        raise ImageError(f"{name} is a file: URL, but local files are not allowed.", code="image_not_allowed")
    path = _resolve_below(limits.allow_local_media, url)
    if path is None:
        raise ImageError(f"{name} is not a file below the folder of local images.", code="image_not_allowed")
    try:
        return read_regular(path, limit=limits.max_image_bytes, follow=False)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _too_large(name, limits) from None
        raise ImageError(f"{name} is a file that cannot be read.", code="image_not_fetched") from None


def _resolve_below(folder: Path, url: str) -> Path | None:
    """Return the regular file that a file: URL names, with links resolved, if it is below `folder`, else None."""
    try:
        parts = urlsplit(urls.strip(url))
        found = Path(unquote(parts.path)).resolve(strict=True)
        is_below = parts.netloc in ("", "localhost") and found.is_relative_to(folder.resolve())
        return found if is_below and found.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _invalid(name: str, reason: str) -> ImageError:
    return ImageError(f"{name} {reason}.", code="invalid_image_url")


def _too_large(name: str, limits: ImageLimits) -> ImageError:
    return ImageError(
        f"{name} is larger than {limits.max_image_bytes} bytes, the most that an image may have.",
        code="image_too_large",
        too_large=True,
    )
