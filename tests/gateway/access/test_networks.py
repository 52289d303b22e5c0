"""Network rules: what is read, and which addresses are inside."""

import pytest

from hsmux_gateway.access.networks import Networks, parse_networks
from hsmux_protocol.operations import NETWORKS_MAX


def test_networks_are_canonical() -> None:
    texts = ["2001:DB8::/32", "10.1.0.0/16", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.7"]
    assert parse_networks(texts) == ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "at least one"),
        (["10.0.0.1/8"], "10.0.0.0/8"),
        (["10.0.0.0/33"], "no network"),
        (["010.0.0.0/8"], "no network"),
        (["localhost"], "no network"),
        (["fe80::1%eth0/128"], "zone"),
        (["fe80::1%a\nb/128"], "zone"),
        (["::ffff:127.0.0.0/104"], "write IPv4 networks as such"),
        ([""], "no network"),
        (["10.0.0.0/255.0.0.255"], "no network"),
        ([f"10.0.{i // 256}.{i % 256}" for i in range(NETWORKS_MAX + 1)], "at most"),
    ],
)
def test_what_is_no_rule(texts: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_networks(texts)


@pytest.mark.parametrize(
    ("network", "address", "expected"),
    [
        ("10.1.0.0/16", "10.1.255.255", True),
        ("10.1.0.0/16", "10.2.0.0", False),
        ("10.1.0.0/16", "::ffff:10.1.2.3", True),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "10.1.2.3", False),
        # An IPv4 address inside IPv6 is an IPv4 address, and no part of ::/0.
        ("::/0", "::ffff:10.1.2.3", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("2001:db8::/32", "2001:db9::1", False),
    ],
)
def test_which_addresses_are_inside(network: str, address: str, expected: bool) -> None:
    assert Networks(parse_networks([network])).contain(address) is expected
