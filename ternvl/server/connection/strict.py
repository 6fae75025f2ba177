"""Refuses requests that two programs could read as different requests.

A proxy in front of the server must see the same requests as the server. Where it does not, one request can be hidden
within another ("request smuggling"). RFC 9112 lets a recipient take several of the shapes below; this server takes none
of them, and closes the connection.
"""

from __future__ import annotations

import re

import h11

MAX_HEAD = 32 * 1024
"""The most bytes of a request's first line and headers together."""
MAX_HEADERS = 100

_END = re.compile(rb"\n\r?\n")
_LINE_BREAK = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_VERSION = re.compile(rb"HTTP/1\.[01]")


class HeadError(h11.RemoteProtocolError):
    """A request whose form is refused; `error_status_hint` is the status of the answer."""


class StrictConnection(h11.Connection):
    """h11's server side of a connection, with stricter rules for the heads of requests."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD)
        self.error: h11.RemoteProtocolError | None = None
        """Why the last request was refused."""
        self._num_searched = 0

    @property
    def awaits_head(self) -> bool:
        """Whether the next request's head is not complete."""
        return self.their_state is h11.IDLE

    @property
    def has_part_of_head(self) -> bool:
        """Whether bytes of a head have arrived that is not complete."""
        return self.awaits_head and bool(self.trailing_data[0])

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what h11 returns. Raises h11.RemoteProtocolError, which `error` then has."""
        try:
            if self.awaits_head:
                self._check_head(self.trailing_data[0])
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.error = error
            raise

    def _check_head(self, received: bytes) -> None:
        """Check the head once it is complete. No byte is searched again for each one that trickles in."""
        end = _END.search(received, max(0, self._num_searched - 2))
        size = end.end() if end else len(received)
        if size > MAX_HEAD:
            raise HeadError(f"The head of a request may have {MAX_HEAD} bytes.", error_status_hint=431)
        self._num_searched = 0 if end else size
        if end:
            _check(received[:size])


def _check(head: bytes) -> None:
    if _LINE_BREAK.search(head):
        raise HeadError("A line of a request must end in CR LF.")
    if _CONTROL.search(head):
        raise HeadError("The head of a request must not have control characters.")
    request, *headers = head[:-4].split(b"\r\n")
    _check_request_line(request)
    _check_headers(headers)


def _check_request_line(line: bytes) -> None:
    method, _, rest = line.partition(b" ")
    version = rest.rpartition(b" ")[2]
    if not _VERSION.fullmatch(version):
        raise HeadError("The version must be HTTP/1.1 or HTTP/1.0.", error_status_hint=505)
    if method == b"CONNECT":
        raise HeadError("CONNECT is for proxies, which this server is none of.", error_status_hint=405)


def _check_headers(lines: list[bytes]) -> None:
    if len(lines) > MAX_HEADERS:
        raise HeadError(f"A request may have {MAX_HEADERS} headers.", error_status_hint=431)
    if any(line[:1] in b" \t" for line in lines if line):
        raise HeadError("A header must not continue on a second line.")
    lengths = [value for name, value in map(_split, lines) if name == b"content-length"]
    encodings = [value for name, value in map(_split, lines) if name == b"transfer-encoding"]
    if len(lengths) + len(encodings) > 1:
        raise HeadError("A request must have one of Content-Length and Transfer-Encoding, once.")
    if lengths and not lengths[0].isdigit():
        raise HeadError("Content-Length must be a number.")


def _split(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()
