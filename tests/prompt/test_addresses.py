"""Which addresses are allowed, also in forms that embed another address."""

from __future__ import annotations

import pytest

from ternvl.prompt.addresses import may_connect

PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "198.18.0.1", "::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a00:1", "2002:7f00:1::1", "2002:a00:1::", "192.0.2.1", "203.0.113.9", "2001:db8::1",
]  # fmt: skip
NEVER = [
    "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fe80::1", "fe80::1%eth0",
    "224.0.0.1", "239.1.2.3", "ff02::1", "::ffff:224.0.0.1", "0.0.0.0", "::", "::ffff:0.0.0.0", "255.255.255.255",
    "240.0.0.1", "fec0::1", "::7f00:1", "::ffff:0:7f00:1", "2001:0:7f00:1::", "nonsense", "", "2130706433", "127.1",
    "0.1.2.3", "192.0.0.8", "192.0.0.192", "192.88.99.1", "168.63.129.16", "100.100.100.200", "fd00:ec2::254",
    "fd20:ce::254", "3fff::1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1", "64:ff9b:1::7f00:1",
    "64:ff9b::a83f:8110", "::ffff:168.63.129.16", "2001:4860::8888%eth0",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert may_connect(address, allow_private=False)
    assert may_connect(address, allow_private=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_private(address: str) -> None:
    assert not may_connect(address, allow_private=False)
    assert may_connect(address, allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_never(address: str) -> None:
    assert not may_connect(address, allow_private=False)
    assert not may_connect(address, allow_private=True)
