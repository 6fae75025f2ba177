"""Decides which network addresses images may be fetched from, which guards against server-side request forgery."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""The third quarter of an IPv6 address that embeds an IPv4 address in its last."""

_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "192.0.0.0/24",  # protocols, and Oracle's metadata service
        "192.88.99.0/24",  # relays of 6to4
        "3fff::/20",  # documentation, which older versions of Python take for public
        # The metadata services of Azure, Alibaba, AWS and Google that are not at link-local addresses:
        *("168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128", "fd20:ce::254/128"),
    )
)


def may_connect(address: str, *, allow_private: bool) -> bool:
    """Return whether images may be fetched from a resolved IP address.

    Public addresses are allowed, with `allow_private` also loopback and private ones. Link-local addresses (where
    clouds keep their metadata services), the other addresses of such services, multicast, unspecified and reserved ones
    never are. An IPv6 address that embeds an IPv4 address is checked by the latter (mapped, 6to4, NAT64) or never
    allowed (Teredo, ISATAP).
    """
    try:
        ip = _embedded_ipv4(ipaddress.ip_address(address))
    except ValueError:
        return False
    if ip == ipaddress.IPv6Address("::1"):  # `is_reserved` is true for it
        return allow_private
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved or _is_tunnelled(ip):
        return False
    if any(ip in network for network in _NEVER):
        return False
    return ip.is_global or allow_private


def _is_tunnelled(ip: Address) -> bool:
    """Return whether a packet to an IPv6 address may end at a host of this network or of another one within it."""
    if isinstance(ip, IPv4Address):
        return False
    is_isatap = int(ip) >> 32 & 0xFFFF_FFFF in _ISATAP
    return ip.is_site_local or ip.scope_id is not None or ip.teredo is not None or is_isatap


def _embedded_ipv4(ip: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds, or else the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
