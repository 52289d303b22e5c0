"""Network rules: named lists of IPv4 and IPv6 networks (CIDR, RFC 4632 and RFC 4291)."""

import functools
import ipaddress
from collections.abc import Iterable
from typing import Final

from hsmux_protocol.operations import NETWORKS_MAX

__all__ = ["Networks", "parse_networks"]

REMEMBERED_MAX: Final = 4096
"""Addresses whose place is remembered, for each rule."""

MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
"""IPv4 addresses inside IPv6 (RFC 4291 section 2.5.5.2), which count as IPv4."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Iterable[str]) -> list[str]:
    """The networks of a rule in their canonical text, ascending, IPv4 first.

    Raises:
        ValueError: There is none, there are too many, or one is not a network; says which.
    """
    networks = [_parse_network(text) for text in texts]
    if not networks:
        raise ValueError("a rule without networks lets nobody in: name at least one")
    if len(networks) > NETWORKS_MAX:
        raise ValueError(f"{len(networks)} networks; at most {NETWORKS_MAX}")
    ordered = sorted(set(networks), key=lambda n: (n.version, n.network_address, n.prefixlen))
    return [str(network) for network in ordered]


def _parse_network(text: str) -> _Network:
    if "%" in text:
        raise ValueError(f"{text!r}: a zone has no place in a network")
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        network = None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED):
        raise ValueError(f"{text!r}: write IPv4 networks as such")
    if network is not None:
        return network
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network; one is 10.1.0.0/16, or 2001:db8::/32") from None
    raise ValueError(f"{text!r} names a host inside {meant}: write one or the other")


class Networks:
    """A rule, ready to be asked.

    Args:
        texts: From `parse_networks`.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(text) for text in texts]
        self.contain = functools.lru_cache(REMEMBERED_MAX)(self._contain)

    def __repr__(self) -> str:
        return f"Networks({', '.join(map(str, self._networks))})"

    def _contain(self, address: str) -> bool:
        """Whether an address is in one of the networks; an IPv4 address stays one inside IPv6."""
        found = ipaddress.ip_address(address.partition("%")[0])
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        return any((mapped or found) in network for network in self._networks)
