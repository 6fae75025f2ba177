"""Downloads an image or a video over HTTP within limits: from checked addresses, with one deadline for all redirects.

`httpcore` is httpx's transport. It is used directly because its network backend turns names into connections: each host
name is resolved once, its addresses are checked, and the connection goes to a checked address, while the Host header,
SNI and the certificate check use the name.
"""

from __future__ import annotations

import socket
import ssl
import time
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urljoin

import httpcore
import httpx

from ternvl.errors import MediaError
from ternvl.limits import ImageLimits
from ternvl.prompt.addresses import may_connect
from ternvl.prompt.medium import Medium
from ternvl.workers.threads import started

_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "ternvl", "Connection": "close"}


class _AddressNotAllowedError(Exception):
    """A host has an address that media may not be fetched from."""


class Download:
    """The download of one image or video, including redirects. Times are in seconds of `time.monotonic`."""

    def __init__(self, limits: ImageLimits, medium: Medium, name: str) -> None:
        """The time limit begins now. `name` is what errors call the image or video."""
        self._limits = limits
        self._medium = medium
        self._name = name
        self._deadline = time.monotonic() + medium.fetch_timeout

    def get(self, url: httpx.URL) -> bytes | str:
        """Return the body of a checked URL, or the URL that it redirects to. Raises MediaError."""
        host = _host(url)
        backend = _GuardedBackend(self._deadline, allow_private=self._limits.allow_private_addresses)
        try:
            with httpcore.ConnectionPool(ssl_context=_ssl_context(), network_backend=backend) as pool:
                accepted = ("Accept", f"{self._medium.kind}/*")
                headers = [("Host", url.netloc.decode("ascii")), accepted, *_HEADERS.items()]
                with pool.stream("GET", _core_url(url), headers=headers) as response:
                    return self._read(response, url)
        except _AddressNotAllowedError:
            raise self._error(
                f"{host} has an address that {self._medium.kind}s may not be fetched from (only public addresses are "
                "allowed)"
            ) from None
        except (httpcore.TimeoutException, TimeoutError):
            raise self._error(f"{host} took longer than {self._medium.fetch_timeout:g} seconds") from None
        except socket.gaierror:
            raise self._error(f"the host name {host} could not be resolved") from None
        except ssl.SSLError:
            raise self._error(f"no secure connection to {host} could be made") from None
        except httpcore.ConnectError as error:
            kind = "no secure connection" if "ssl" in str(error).lower() else "no connection"
            raise self._error(f"{kind} to {host} could be made") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, zlib.error):
            raise self._error(f"{host} closed the connection or sent no valid response") from None

    def _read(self, response: httpcore.Response, url: httpx.URL) -> bytes | str:
        headers = {key.lower(): value.decode("latin-1") for key, value in response.headers}
        if response.status in _REDIRECTS and b"location" in headers:
            return self._redirect_target(url, _location(response))
        if response.status != 200:
            raise self._error(f"{_host(url)} responded with status {response.status}")
        length = headers.get(b"content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > self._medium.max_bytes:
            raise self._medium.too_large(self._name)
        chunks = response.iter_stream()
        encoding = headers.get(b"content-encoding", "identity").strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            chunks = _inflate(chunks)
        elif encoding not in ("identity", ""):
            raise self._error(f"{_host(url)} responded with a content encoding that is not supported")
        return self._collect(chunks)

    def _redirect_target(self, url: httpx.URL, location: str) -> str:
        try:
            return urljoin(str(url), location)
        except ValueError:
            raise self._error(f"{_host(url)} redirects to an invalid URL") from None

    def _collect(self, chunks: Iterable[bytes]) -> bytes:
        body = bytearray()
        for chunk in chunks:
            body += chunk
            if len(body) > self._medium.max_bytes:
                raise self._medium.too_large(self._name)
        return bytes(body)

    def _error(self, reason: str) -> MediaError:
        return self._medium.not_fetched(self._name, reason)


class _GuardedBackend(httpcore.NetworkBackend):
    """Resolves host names, checks their addresses, and connects to them before a deadline."""

    def __init__(self, deadline: float, *, allow_private: bool) -> None:
        self._deadline = deadline
        self._allow_private = allow_private
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the host's addresses in turn. Raise _AddressNotAllowedError if any of them is not allowed."""
        addresses = _resolve(host, port, _seconds_left(self._deadline))
        if not all(may_connect(address, allow_private=self._allow_private) for address in addresses):
            raise _AddressNotAllowedError
        for num_left in range(len(addresses), 0, -1):
            share = (
                _seconds_left(self._deadline) / num_left
            )  # so that an address that does not respond leaves time for the others
            try:
                stream = self._sockets.connect_tcp(addresses[-num_left], port, share, local_address, socket_options)
                return _DeadlineStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if num_left == 1:
                    raise
        raise socket.gaierror


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose every operation ends at the deadline, also if the server sends bytes very slowly."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _seconds_left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _seconds_left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _seconds_left(self._deadline))
        return _DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left


def _resolve(host: str, port: int, timeout: float) -> list[str]:
    """Return the host's IP addresses, which may be none. The resolver has no time limit, so a thread waits for it."""
    answers: SimpleQueue[list[str]] = SimpleQueue()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError):
            answers.put([])

    started(Thread(target=resolve, name="resolve", daemon=True))
    try:
        return answers.get(timeout=timeout)
    except Empty:
        raise httpcore.ConnectTimeout from None


def _inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress gzip or deflate in pieces of bounded size, so that the size limit stops a decompression bomb."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    for chunk in chunks:
        while chunk:
            yield inflater.decompress(chunk, 65_536)
            chunk = inflater.unconsumed_tail
    yield inflater.flush()


def _location(response: httpcore.Response) -> str:
    """Return the header `Location`: as UTF-8, which servers send raw, or with other bytes escaped."""
    value: bytes = next(value for key, value in response.headers if key.lower() == b"location")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in value)


def _host(url: httpx.URL) -> str:
    """Return the host as it is sent. `url.host` would decode international names, and fails for some of them."""
    return url.raw_host.decode("ascii")


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
