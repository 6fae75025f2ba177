"""Downloads of images from a server on loopback: redirects, limits, time, addresses and broken connections."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from ternvl.limits import ImageLimits
from ternvl.prompt.fetch import fetch
from tests.prompt.web import BODY, NAME, OPEN, Answer, Server, names, redirect, refused, send


def test_an_image_is_fetched(server: Server) -> None:
    assert fetch(server.url("/a.png"), OPEN, NAME) == BODY
    path, headers = server.requests[0]
    assert path == "/a.png"
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers
    assert "Authorization" not in headers


def test_path_and_query_are_sent_as_they_are(server: Server) -> None:
    server.answers["/b%20c/%C3%BC.png?x=1&y=%2F@"] = send
    assert fetch(server.url("/b%20c/ü.png?x=1&y=%2F@#fragment"), OPEN, NAME) == BODY


def test_the_host_header_has_the_name_and_the_connection_goes_to_the_checked_address(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = names(monkeypatch, {"images.example.com": ["127.0.0.1"]})
    assert fetch(server.url("/a.png", "images.example.com"), OPEN, NAME) == BODY
    assert server.requests[0][1]["Host"] == f"images.example.com:{server.port}"
    assert asked.count("images.example.com") == 1  # a second answer of the resolver could differ


def test_addresses_are_tried_in_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"two.example.com": ["127.0.0.2", "127.0.0.1"]})
    assert fetch(server.url("/a.png", "two.example.com"), OPEN, NAME) == BODY


def test_proxies_of_the_environment_are_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert fetch(server.url("/a.png"), OPEN, NAME) == BODY


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Server, status: int) -> None:
    server.answers["/one"] = redirect("two?x=1", status)
    server.answers["/two?x=1"] = redirect(server.url("/a.png"), status)
    assert fetch(server.url("/one"), OPEN, NAME) == BODY


def test_the_number_of_redirects_is_limited(server: Server) -> None:
    for number in range(5):
        server.answers[f"/{number}"] = redirect(f"/{number + 1}")
    server.answers["/5"] = send
    assert fetch(server.url("/2"), OPEN, NAME) == BODY
    assert "more than 3 times" in str(refused(server.url("/1")))
    assert "more than 0 times" in str(
        refused(server.url("/4"), ImageLimits(allow_private_addresses=True, max_redirects=0))
    )


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://example.com/a", "data:image/png;base64,AAAA", "http://169.254.169.254/latest",
     "http://user@127.0.0.1/", "http://[::ffff:169.254.169.254]/", "http://0x7f.1/", "//\\evil", "http://[/",
     "http://xn--a/", "http://\x80/"],
)  # fmt: skip
def test_redirects_are_checked_again(server: Server, location: str) -> None:
    server.answers["/go"] = redirect(location)
    refused(server.url("/go"))
    assert len(server.requests) == 1


def test_a_redirect_from_a_public_name_to_a_private_address_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/go"] = redirect(server.url("/a.png"))
    names(monkeypatch, {"public.example.com": ["127.0.0.1"]})
    checked = []

    def check(address: str, *, allow_private: bool) -> bool:
        checked.append(address)
        return len(checked) == 1  # the first hop counts as public

    monkeypatch.setattr("ternvl.prompt.download.may_connect", check)
    assert "may not be fetched from" in str(refused(server.url("/go", "public.example.com"), ImageLimits()))
    assert [path for path, _ in server.requests] == ["/go"]
    assert len(checked) == 2


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
def test_other_statuses_are_reported(server: Server, status: int) -> None:
    server.answers["/x"] = lambda handler: send(handler, status, b"" if status in (204, 304) else b"no")
    assert f"status {status}" in str(refused(server.url("/x")))


def test_a_declared_length_over_the_limit(server: Server) -> None:
    limits = ImageLimits(allow_private_addresses=True, max_image_bytes=len(BODY) - 1)
    assert refused(server.url("/a.png"), limits).too_large


def test_a_body_over_the_limit_that_declares_no_length(server: Server) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(65_536))

    server.answers["/endless"] = endless
    assert refused(server.url("/endless"), ImageLimits(allow_private_addresses=True, max_image_bytes=10**6)).too_large


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_an_encoded_body(server: Server, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    small, huge = compress(BODY), compress(bytes(5 * 10**6))
    server.answers["/small"] = lambda handler: send(handler, body=small, Content_Encoding=encoding)
    server.answers["/huge"] = lambda handler: send(handler, body=huge, Content_Encoding=encoding)
    limits = ImageLimits(allow_private_addresses=True, max_image_bytes=10**6)
    assert fetch(server.url("/small"), limits, NAME) == BODY
    assert len(huge) < 10**5
    assert refused(server.url("/huge"), limits).too_large


def test_bad_encodings(server: Server) -> None:
    server.answers["/br"] = lambda handler: send(handler, Content_Encoding="br")
    server.answers["/lie"] = lambda handler: send(handler, Content_Encoding="gzip")
    assert "encoding" in str(refused(server.url("/br")))
    assert "no valid response" in str(refused(server.url("/lie")))


def send_slowly(pieces: Iterator[bytes]) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        for piece in pieces:
            handler.wfile.write(piece)
            time.sleep(0.02)

    return answer


def test_a_slow_body_ends_at_the_deadline(server: Server) -> None:
    server.answers["/slow"] = send_slowly(iter([b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 500]))
    assert "longer than 0.3 seconds" in str(
        refused(server.url("/slow"), ImageLimits(allow_private_addresses=True, fetch_timeout=0.3))
    )
    assert not any(thread.name == "resolve" for thread in threading.enumerate())


def test_slow_headers_end_at_the_deadline(server: Server) -> None:
    server.answers["/slow"] = send_slowly(iter([b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 500]))
    assert "longer than 0.3 seconds" in str(
        refused(server.url("/slow"), ImageLimits(allow_private_addresses=True, fetch_timeout=0.3))
    )


def test_the_time_limit_covers_all_redirects(server: Server) -> None:
    def slow_redirect(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.25)
        redirect("/slow")(handler)

    server.answers["/slow"] = slow_redirect
    limits = ImageLimits(allow_private_addresses=True, fetch_timeout=0.4, max_redirects=50)
    assert "longer than 0.4 seconds" in str(refused(server.url("/slow"), limits))
    assert len(server.requests) <= 2


def test_a_resolver_that_hangs_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("ternvl.prompt.download.socket.getaddrinfo", lambda *_, **__: release.wait(10) and [])
    assert "longer than 0.2 seconds" in str(refused("http://example.com/", ImageLimits(fetch_timeout=0.2)))
    release.set()


def test_a_connection_that_breaks(server: Server) -> None:
    server.answers["/cut"] = lambda handler: send(handler, Content_Length="99999")
    server.answers["/junk"] = lambda handler: handler.wfile.write(b"\x00\x01 what?\r\n\r\n") and None
    for path in ("/cut", "/junk"):
        assert "no valid response" in str(refused(server.url(path)))


def test_closed_ports_and_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert "no connection" in str(refused(f"http://127.0.0.1:{taken.getsockname()[1]}/"))
    names(monkeypatch, {})
    assert "could not be resolved" in str(refused("http://no.such.name/a.png"))
    monkeypatch.undo()
    assert "could not be resolved" in str(refused(f"http://{'a' * 70}.example/"))


def test_https_to_a_server_without_a_trusted_certificate_fails(server: Server) -> None:
    assert "secure connection" in str(refused(server.url("/a.png").replace("http:", "https:")))


def test_https_sends_the_name_although_it_connects_to_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"images.example.com": ["127.0.0.1"]})
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda connection, name, of: asked.append(name)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    asked.append("handshake failed")

        thread = threading.Thread(target=accept)
        thread.start()
        assert "secure connection" in str(refused(f"https://images.example.com:{listener.getsockname()[1]}/"))
        thread.join()
    assert asked == ["images.example.com", "handshake failed"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.0.0.1", "192.168.0.1", "169.254.169.254", "100.64.1.1", "0.0.0.0", "[::1]", "[::]",
     "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[ff02::1]", "224.0.0.1",
     "255.255.255.255", "127.0.0.1.", "LOCALHOST"],
)  # fmt: skip
def test_only_public_addresses_by_default(server: Server, host: str) -> None:
    refused(server.url("/a.png", host), ImageLimits())
    assert server.requests == []


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"]]
)
def test_every_address_of_a_name_is_checked(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    names(monkeypatch, {"rebind.example.com": addresses})
    monkeypatch.setattr(
        "ternvl.prompt.download.httpcore.SyncBackend.connect_tcp", lambda *_, **__: pytest.fail("connected")
    )
    assert "may not be fetched from" in str(refused("http://rebind.example.com/a.png", ImageLimits()))
