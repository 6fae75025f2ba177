"""Decides which network addresses images may be fetched from, which guards against server-side request forgery."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = IPv4Address | IPv6Address


def may_connect(address: str, *, allow_private: bool) -> bool:
    """Return whether images may be fetched from a resolved IP address.

    Public addresses are allowed, with `allow_private` also loopback and private ones. Link-local addresses (where
    clouds keep their metadata services), multicast, unspecified and reserved ones never are. An IPv6 address that
    embeds an IPv4 address (mapped, 6to4, NAT64) is checked by the latter.
    """
    try:
        ip = _embedded_ipv4(ipaddress.ip_address(address))
    except ValueError:
        return False
    if ip == ipaddress.IPv6Address("::1"):  # `is_reserved` is true for it
        return allow_private
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return False
    if isinstance(ip, IPv6Address) and (ip.is_site_local or ip.scope_id is not None or ip.teredo is not None):
        return False
    return ip.is_global or allow_private


def _embedded_ipv4(ip: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds, or else the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
