"""Normalises the URLs of images as the URL standard does, and refuses those whose host parsers disagree about.

Source: https://url.spec.whatwg.org. Where the standard repairs a host or a backslash, the URL is refused instead.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address

import httpx
import idna

_AROUND = " \t\r\n\f\v"
"""White space, which the standard strips from both ends of a URL; it strips control characters, too."""
_BREAKS = str.maketrans("", "", "\t\r\n")
_FORBIDDEN_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\\]")
_HOST = re.compile(r"(?!-)[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|[0-9a-f.]*:[0-9a-f:.]+")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):.", re.DOTALL)


class URLError(Exception):
    """A URL that is refused. `str(error)` continues the words "a URL that"."""


def scheme_of(text: str) -> str:
    """Return the scheme of a URL in lower case; an empty string if it has none, or nothing else."""
    found = _SCHEME.match(text.strip(_AROUND))
    return found[1].lower() if found else ""


def strip(text: str) -> str:
    """Return a URL without white space at its ends, and without line breaks and tabs."""
    return text.strip(_AROUND).translate(_BREAKS)


def normalise(text: str) -> httpx.URL:
    """Return the URL that an `http:` or `https:` URL means, with escaped characters and the host in ASCII.

    Raises URLError.
    """
    text = strip(text)
    if _FORBIDDEN_CHARACTERS.search(text):
        raise URLError("contains a backslash or a control character")
    scheme, _, rest = text.partition("://")
    authority = re.split("[/?#]", rest)[0]
    if " " in authority:
        raise URLError("contains a space in its host")
    if "@" in authority:
        raise URLError("contains a user name, which is not allowed")
    try:
        url = httpx.URL(f"{scheme}://{_to_ascii(authority)}{rest[len(authority) :]}")
        host = url.raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, idna.IDNAError, ValueError):
        raise URLError("cannot be parsed") from None
    if url.scheme not in ("http", "https"):
        raise URLError(f"has the scheme {url.scheme[:20]!r}, which is not supported")
    if not _HOST.fullmatch(host) or not _is_unambiguous(host):
        raise URLError("has no valid host name or address")
    if url.port is not None and not 1 <= url.port <= 65_535:
        raise URLError(f"has the port {url.port}, which is not from 1 to 65535")
    return url


def _to_ascii(authority: str) -> str:
    """Return an authority with the labels of an international host name in their ASCII form (UTS #46).

    Raises ValueError for a name that becomes an address only by this, such as `①②⑦.0.0.1`.
    """
    if authority.isascii():
        return authority
    mapped = idna.uts46_remap(authority, std3_rules=False, transitional=False)
    labels = [each if each.isascii() else "xn--" + each.encode("punycode").decode() for each in mapped.split(".")]
    if _NUMBER.fullmatch(labels[-1].partition(":")[0]):
        raise ValueError("an address in other characters")
    return ".".join(labels)


def _is_unambiguous(host: str) -> bool:
    """Return False for a host that only some parsers read as an address, such as 2130706433, 0x7f.1, 0177.0.0.1."""
    last = host.removesuffix(".").rpartition(".")[2]
    if ":" in host or not _NUMBER.fullmatch(last):
        return True
    try:
        return bool(IPv4Address(host))
    except ValueError:
        return False
