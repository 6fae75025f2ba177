"""URLs, names and redirects that try to reach what the server must not connect to: nothing reaches a socket.

Every connection of the process is counted at the socket, by an audit hook. A public address stands for a server of the
test's own, which the connection is led to; there is no other connection that is allowed.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ternvl.errors import ImageError
from ternvl.limits import ImageLimits
from ternvl.prompt.fetch import fetch
from tests.prompt.web import BODY, NAME, Server, redirect, send

PUBLIC, PUBLIC_6 = "93.184.216.34", "2606:2800:220:1::1"
"""Addresses that are taken for the test's server."""

IPV4 = [
    "127.0.0.1", "127.0.0.1.", "127.255.255.254", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1",
    "0x7F.1", "0177.0.0.1", "017700000001", "0177.0.0.01", "00000177.0.0.1", "127.0.0.1%00", "%31%32%37.0.0.1",
    "①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.0.0.1", "0", "0x0", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.1", "167772161",
    "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.1", "3232235521", "100.64.0.1", "100.127.255.254",
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0xa9.0xfe.0xa9.0xfe", "0251.0376.0251.0376", "169.254.43518",
    "169.16689662", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "256.0.0.1",
    "127.0.0.1:80@" + PUBLIC, PUBLIC + "@127.0.0.1", "user:pass@127.0.0.1", "127.0.0.1\\@" + PUBLIC,
    PUBLIC + "\\.127.0.0.1", "127.0.0.1 " + PUBLIC, "127.0.0.1\t", "1\n27.0.0.1", "localhost", "LocalHost.",
    "ⓛocalhost",
]  # fmt: skip
IPV6 = [
    "::1", "::", "0:0:0:0:0:0:0:1", "0000:0000:0000:0000:0000:0000:0000:0001", "::0001", "::ffff:127.0.0.1",
    "::ffff:7f00:1", "0:0:0:0:0:ffff:127.0.0.1", "::FFFF:7F00:0001", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe", "::ffff:0:127.0.0.1", "::ffff:0:7f00:1", "::127.0.0.1", "::7f00:1", "::ffff:0.0.0.0",
    "64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::127.0.0.1",
    "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:7f00:1::1", "2002:a9fe:a9fe::", "2002:a00:1::1", "2002:c0a8:1::",
    "2001::1", "2001:0:5db8:d822:0:0:80ff:fffe", "2001:db8::1", "2001:10::1", "2001:20::1", "3fff::1", "100::1",
    "fe80::1", "fe80::1%25eth0", "fe80::1%eth0", "fe80::1%25lo", "::1%25lo", "fe80::a9fe:a9fe", "fec0::1", "fc00::1",
    "fd00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "ff05::2", "ff0e::1", "2606:4700::5efe:127.0.0.1",
    "2606:4700::200:5efe:7f00:1", "fe80::5efe:10.0.0.1", "::1]@[" + PUBLIC_6,
]  # fmt: skip
LITERALS = [*IPV4, *(f"[{address}]" for address in IPV6)]
FORBIDDEN = [
    "127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1",
    "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00:ec2::254", "168.63.129.16",
]  # fmt: skip
"""What a resolver may return for a name."""

_hosts: list[list[Any]] = []


def _count(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _hosts:
        _hosts[-1].append(args[1])


sys.addaudithook(_count)


class Net:
    """A resolver whose answers change, a server at the public addresses, and every connection that is attempted."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.names: dict[str, list[list[str]]] = {"localhost": [["::1", "127.0.0.1"]]}
        """Each name's answers in turn; the last one stays."""
        self.forbidden: list[Any] = []

    def resolve(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host not in self.names and not _is_address(host):
            raise socket.gaierror("unknown")
        answers = self.names.get(host, [[host]])
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, port)) for each in found]

    def connect(self, address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        if address[0] not in (PUBLIC, PUBLIC_6):
            self.forbidden.append(address)
            raise ConnectionRefusedError
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.connect(("127.0.0.1", self.server.port))
        return made

    def fetch(self, url: str, **limits: Any) -> bytes:
        return fetch(url, ImageLimits(fetch_timeout=30.0, **limits), NAME)


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def net(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    server.requests.clear()
    net = Net(server)
    monkeypatch.setattr("ternvl.prompt.download.socket.getaddrinfo", net.resolve)
    monkeypatch.setattr("httpcore._backends.sync.socket.create_connection", net.connect)
    seen: list[Any] = []
    _hosts.append(seen)
    yield net
    _hosts.remove(seen)
    assert net.forbidden == []
    assert set(seen) <= {("127.0.0.1", server.port)}
    assert len(seen) == len(server.requests)


def refused(net: Net, url: str) -> str:
    with pytest.raises(ImageError) as caught:
        net.fetch(url)
    assert caught.value.code in ("invalid_image_url", "image_not_fetched", "image_not_allowed")
    return str(caught.value)


def test_the_table_is_large_and_the_sockets_are_counted(net: Net) -> None:
    assert len(set(LITERALS)) == len(LITERALS) >= 80
    net.names["images.example.com"] = [[PUBLIC]]
    for host in ("images.example.com", PUBLIC, f"[{PUBLIC_6}]", f"[64:ff9b::{PUBLIC}]", f"[::ffff:{PUBLIC}]"):
        address = ipaddress.ip_address(host.strip("[]")) if host[0] in "[9" else None
        if address is None or str(address) in (PUBLIC, PUBLIC_6):
            assert net.fetch(f"http://{host}/a.png") == BODY
    assert len(net.server.requests) == len(_hosts[-1]) == 3


@pytest.mark.parametrize("host", LITERALS)
def test_an_address_in_a_url(net: Net, host: str) -> None:
    for scheme in ("http", "https", "HTTP"):
        refused(net, f"{scheme}://{host}/a.png")
    refused(net, f"http://{host}:{net.server.port}/a.png")
    assert net.server.requests == []


@pytest.mark.parametrize("host", LITERALS)
def test_a_redirect_to_an_address(net: Net, host: str) -> None:
    net.names["good.example.com"] = [[PUBLIC]]
    net.server.answers["/go"] = redirect(f"http://{host}/a.png".replace("\n", "").encode().decode("latin-1"))
    net.server.answers["/far"] = redirect("http://good.example.com/go", 307)
    for path in ("/go", "/far"):
        refused(net, f"http://good.example.com{path}")
    assert [path for path, _ in net.server.requests] == ["/go", "/far", "/go"]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_name_with_a_forbidden_address_among_others(net: Net, address: str) -> None:
    for answer in ([address], [PUBLIC, address], [address, PUBLIC], [PUBLIC, PUBLIC_6, address]):
        net.names["mixed.example.com"] = [answer]
        assert "may not be fetched from" in refused(net, "http://mixed.example.com/a.png")
    assert net.server.requests == []


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_name_whose_address_changes_after_it_was_checked(net: Net, address: str) -> None:
    net.names["rebind.example.com"] = [[PUBLIC], [address]]
    assert net.fetch("http://rebind.example.com/a.png") == BODY  # one answer is checked and used
    assert "may not be fetched from" in refused(net, "http://rebind.example.com/a.png")
    net.names["rebind.example.com"] = [[PUBLIC], [address]]
    net.server.answers["/again"] = redirect("/a.png")
    assert "may not be fetched from" in refused(net, "http://rebind.example.com/again")
    assert [path for path, _ in net.server.requests] == ["/a.png", "/again"]


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://example.com/a", "gopher://127.0.0.1:6379/_INFO", "dict://127.0.0.1/", "data:,a",
     "unix:///run/docker.sock", "//127.0.0.1/", "///127.0.0.1/", "http:127.0.0.1", "http:/127.0.0.1", "\\\\127.0.0.1",
     "http://good.example.com@127.0.0.1/", "http://127.0.0.1#@good.example.com/", "http://127.0.0.1?@good.example.com/",
     "http://[::ffff:127.0.0.1]:80/", "jar:http://127.0.0.1!/", "javascript:1", "http://good.example.com:0/"],
)  # fmt: skip
def test_a_redirect_to_another_scheme_or_a_url_that_parsers_read_in_two_ways(net: Net, location: str) -> None:
    net.names["good.example.com"] = [[PUBLIC]]
    net.server.answers["/go"] = redirect(location)
    refused(net, "http://good.example.com/go")
    assert "/etc/passwd" not in [path for path, _ in net.server.requests]


def test_addresses_that_are_never_allowed_stay_so_with_private_ones(net: Net) -> None:
    for host in (
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "168.63.129.16",
        "0.0.0.0",
        "[fe80::1]",
    ):
        with pytest.raises(ImageError, match="may not be fetched from"):
            net.fetch(f"http://{host}/", allow_private_addresses=True)


def test_a_chain_of_redirects_that_ends_at_a_private_name(net: Net) -> None:
    net.names |= {f"{name}.example.com": [[PUBLIC]] for name in "abc"} | {"d.example.com": [["10.0.0.1"]]}
    for number, name in enumerate("bcd"):
        net.server.answers[f"/{number}"] = redirect(f"http://{name}.example.com/{number + 1}")
    net.server.answers["/3"] = send
    assert "may not be fetched from" in refused(net, "http://a.example.com/0")
    assert [path for path, _ in net.server.requests] == ["/0", "/1", "/2"]
