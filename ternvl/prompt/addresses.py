"""Which network addresses an image may be fetched from: the guard against requests forged through the server."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = IPv4Address | IPv6Address


def may_connect(address: str, *, allow_private: bool) -> bool:
    """Whether a resolved IP address may be connected to.

    Public addresses may. With `allow_private`, loopback and private ones too; never link-local (where clouds keep
    their metadata services), multicast, unspecified or reserved ones. IPv6 forms that carry an IPv4 address (mapped,
    6to4, NAT64) are judged by it.
    """
    try:
        ip = _carried(ipaddress.ip_address(address))
    except ValueError:
        return False
    if ip == ipaddress.IPv6Address("::1"):  # the library counts it among the reserved
        return allow_private
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return False
    if isinstance(ip, IPv6Address) and (ip.is_site_local or ip.scope_id is not None or ip.teredo is not None):
        return False
    return ip.is_global or allow_private


def _carried(ip: Address) -> Address:
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
