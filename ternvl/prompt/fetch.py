"""Fetches an image or a video: `data:`, `http:` or `https:` from allowed addresses, `file:` in one folder."""

from __future__ import annotations

import base64
import binascii
import errno
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from ternvl.files import read_regular
from ternvl.limits import ImageLimits
from ternvl.prompt import urls
from ternvl.prompt.download import Download
from ternvl.prompt.medium import Medium, image_medium
from ternvl.prompt.timing.timeline import stage

_BASE64 = re.compile(r";\s*base64\s*", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n\f\v")


def fetch(
    url: str,
    limits: ImageLimits,
    name: str,
    medium: Medium | None = None,
    visit: Callable[[str], None] = lambda host: None,
) -> bytes:
    """Return the encoded bytes of an image or, as `medium` says, of a video, whose limits are then the medium's.

    `visit` is called with each host and port before it is connected to, and may wait; after that a download takes at
    most `fetch_timeout` seconds. `name` is what errors call the image or video. Raises MediaError if the URL is
    malformed or not allowed, if there are too many bytes, and if it cannot be fetched.
    """
    medium = medium or image_medium(limits)
    with stage("fetch", kind=medium.kind) as facts:
        data = _fetch(url.lstrip(), limits, name, medium, visit)
        facts["bytes"] = len(data)
    return data


def _fetch(url: str, limits: ImageLimits, name: str, medium: Medium, visit: Callable[[str], None]) -> bytes:
    match url[:8].partition(":")[0].lower():
        case "data":
            return _from_data(url, medium, name)
        case "http" | "https":
            return _from_network(url, limits, medium, name, visit)
        case "file":
            return _from_file(url, limits, medium, name)
    raise medium.invalid_url(name, "has a URL that does not begin with data:, http:, https: or file:")


def _from_data(url: str, medium: Medium, name: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not _BASE64.fullmatch(header[header.rfind(";") :]):
        raise medium.invalid_url(name, f'has a URL that does not have the form "data:{medium.kind}/...;base64,..."')
    if len(payload) > 4 * medium.max_bytes + 1024:  # thrice its base64 form: refused without any work
        raise medium.too_large(name)
    if "%" in payload:
        payload = unquote(payload)
    text = payload.translate(_URL_SAFE).rstrip("=")
    if len(text) * 3 // 4 > medium.max_bytes:
        raise medium.too_large(name)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise medium.invalid_url(name, "contains data that is not base64") from None


def _from_network(url: str, limits: ImageLimits, medium: Medium, name: str, visit: Callable[[str], None]) -> bytes:
    target = _check_url(url, limits, medium, name)
    download = None
    for _ in range(limits.max_redirects + 1):
        visit(f"{_host(target)}:{target.port or target.scheme}")
        download = download or Download(limits, medium, name)
        answer = download.get(target)
        if isinstance(answer, bytes):
            return answer
        target = _check_url(str(answer), limits, medium, name)
    raise medium.not_fetched(name, f"it redirects more than {limits.max_redirects} times")


def _check_url(text: str, limits: ImageLimits, medium: Medium, name: str) -> httpx.URL:
    """Return the normalised URL. Refuse one that parsers disagree about, and domains that are not allowed."""
    try:
        url = urls.normalise(text)
    except urls.URLError as error:
        raise medium.invalid_url(name, f"has a URL that {error}") from None
    host, domains = _host(url), limits.allowed_media_domains
    if domains and not any(_is_in_domain(host, domain) for domain in domains):
        raise medium.not_allowed(name, f"could not be fetched: {medium.kind}s from {host} are not allowed")
    return url


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").lower().removesuffix(".")


def _is_in_domain(host: str, domain: str) -> bool:
    domain = domain.lower().strip(".")
    return host == domain or host.endswith("." + domain)


def _from_file(url: str, limits: ImageLimits, medium: Medium, name: str) -> bytes:
    if limits.allow_local_media is None:
        raise medium.not_allowed(name, "is a file: URL, but local files are not allowed")
    path = _resolve_below(limits.allow_local_media, url)
    if path is None:
        raise medium.not_allowed(name, f"is not a file below the folder of local {medium.kind}s")
    try:
        return read_regular(path, limit=medium.max_bytes, follow=False)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise medium.too_large(name) from None
        raise medium.unreadable(name) from None


def _resolve_below(folder: Path, url: str) -> Path | None:
    """Return the regular file that a file: URL names, with links resolved, if it is below `folder`, else None."""
    try:
        parts = urlsplit(urls.strip(url))
        found = Path(unquote(parts.path)).resolve(strict=True)
        is_below = parts.netloc in ("", "localhost") and found.is_relative_to(folder.resolve())
        return found if is_below and found.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None
