"""The bytes behind an image URL: `data:`, `http(s):` within the limits of addresses, `file:` below one folder."""

from __future__ import annotations

import base64
import binascii
import os
import re
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from ternvl.config import ImageLimits
from ternvl.errors import ImageError
from ternvl.prompt.download import Download

_ODD_CHARACTERS = re.compile(r"[\x00-\x20\x7f\\]")
_HOST = re.compile(r"(?!-)[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|[0-9a-f.]*:[0-9a-f:.]+")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n\f\v")


def fetch(url: str, limits: ImageLimits, name: str) -> bytes:
    """The bytes of an image, as they are encoded. Blocks, for downloads at most `limits.fetch_timeout` seconds.

    `name` names the image in errors. Raises ImageError for a URL that is malformed or not allowed, an image over
    `limits.max_image_bytes`, and whatever goes wrong on the way.
    """
    scheme = url[:8].partition(":")[0].lower()
    match scheme:
        case "data":
            return _from_data(url, limits, name)
        case "http" | "https":
            return _from_network(url, limits, name)
        case "file":
            return _from_file(url, limits, name)
    raise ImageError(f"{name} has a URL of another kind than data:, http:, https: or file:.", code="invalid_image_url")


def _from_data(url: str, limits: ImageLimits, name: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise _invalid(name, 'is not of the form "data:image/...;base64,..."')
    if len(payload) > 4 * limits.max_image_bytes + 1024:  # three times its base64: refused before any work is done
        raise _too_large(name, limits)
    if "%" in payload:
        payload = unquote(payload)
    text = payload.translate(_URL_SAFE).rstrip("=")
    if len(text) * 3 // 4 > limits.max_image_bytes:
        raise _too_large(name, limits)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(name, "holds data that is not base64") from None


def _from_network(url: str, limits: ImageLimits, name: str) -> bytes:
    download = Download(limits, name)
    target = _checked(url, limits, name)
    for _ in range(limits.max_redirects + 1):
        answer = download.get(target)
        if isinstance(answer, bytes):
            return answer
        target = _checked(str(answer), limits, name)
    raise ImageError(
        f"{name} could not be fetched: it redirects more than {limits.max_redirects} times.", code="image_not_fetched"
    )


def _checked(text: str, limits: ImageLimits, name: str) -> httpx.URL:
    """A URL that leaves no doubt about its host. Forms that parsers read differently are refused."""
    if _ODD_CHARACTERS.search(text):
        raise _invalid(name, "holds a space, a backslash or a control character")
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, ValueError):
        raise _invalid(name, "cannot be read") from None
    if url.scheme not in ("http", "https"):
        raise _invalid(name, f"leads to {url.scheme or 'no'}:, which is not fetched")
    if "@" in re.split("[/?#]", text.partition("//")[2])[0]:
        raise _invalid(name, "holds a user name, which is not sent")
    if not _HOST.fullmatch(host) or not _plain_number(host):
        raise _invalid(name, "has no proper host name or address")
    if url.port is not None and not 1 <= url.port <= 65_535:
        raise _invalid(name, f"has a port, {url.port}, that is not from 1 to 65535")
    domains = limits.allowed_media_domains
    if domains and not any(_belongs(host, domain) for domain in domains):
        raise ImageError(
            f"{name} could not be fetched: {host} is not one of the domains that images may come from.",
            code="image_not_allowed",
        )
    return url


def _plain_number(host: str) -> bool:
    """False for hosts that only some parsers take for an address: 2130706433, 0x7f.1, 0177.0.0.1."""
    last = host.removesuffix(".").rpartition(".")[2]
    if ":" in host or not _NUMBER.fullmatch(last):
        return True
    try:
        return bool(IPv4Address(host))
    except ValueError:
        return False


def _belongs(host: str, domain: str) -> bool:
    host, domain = host.removesuffix("."), domain.lower().strip(".")
    return host == domain or host.endswith("." + domain)


def _from_file(url: str, limits: ImageLimits, name: str) -> bytes:
    if limits.allow_local_media is None:
        raise ImageError(f"{name} is a file: URL, and local files are not opened here.", code="image_not_allowed")
    path = _below(limits.allow_local_media, url)
    if path is None:
        raise ImageError(f"{name} is no file below the folder of images that is open here.", code="image_not_allowed")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            data = file.read(limits.max_image_bytes + 1)
    except OSError:
        raise ImageError(f"{name} is a file that cannot be read.", code="image_not_fetched") from None
    if len(data) > limits.max_image_bytes:
        raise _too_large(name, limits)
    return data


def _below(folder: Path, url: str) -> Path | None:
    """The regular file that a file: URL names, links resolved, if it lies below `folder`."""
    try:
        parts = urlsplit(url)
        found = Path(unquote(parts.path)).resolve(strict=True)
        here = parts.netloc in ("", "localhost") and found.is_relative_to(folder.resolve())
        return found if here and found.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _invalid(name: str, reason: str) -> ImageError:
    return ImageError(f"{name} has a URL that {reason}.", code="invalid_image_url")


def _too_large(name: str, limits: ImageLimits) -> ImageError:
    return ImageError(
        f"{name} has more than the {limits.max_image_bytes} bytes that an image may have.",
        code="image_too_large",
        too_large=True,
    )
