"""Which address is tried when, by a clock that stands still until it is told to go on."""

import pytest

from hsmux import Busy, Unauthenticated, Unavailable
from hsmux._addresses import Addresses, share, why_none
from hsmux._tls import ConnectionLost

NAMES = ["a:1", "b:1", "c:1"]


class Clock:
    """Tells what it was set to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def order_of(addresses: Addresses) -> list[str]:
    """The order in which all would be tried; trying all leaves it as it was."""
    return [address for address, _ in addresses.turns(10)]


def test_clients_begin_at_different_addresses() -> None:
    firsts = {order_of(Addresses(NAMES, Clock()))[0] for _ in range(200)}
    assert firsts == set(NAMES)


def test_what_works_stays_first_and_what_does_not_goes_last() -> None:
    addresses = Addresses(NAMES, Clock())
    first, second, third = order_of(addresses)
    for _ in range(2):
        assert next(addresses.turns(10))[0] == first
    turns = addresses.turns(10)
    assert [next(turns)[0], next(turns)[0]] == [first, second]
    del turns
    assert order_of(addresses) == [second, third, first]
    assert repr(addresses) == f"Addresses({second}, {third}, {first})"


def test_each_address_has_its_share_of_what_is_left() -> None:
    clock = Clock()
    turns = Addresses(NAMES, clock).turns(9)
    assert next(turns)[1] == 3
    clock.now = 1
    assert next(turns)[1] == 5
    clock.now = 5
    assert next(turns)[1] == 9
    assert list(share(2, -1, clock)) == [5, 5]


def test_a_gateway_that_leaves_is_left_alone_as_long_as_it_asked() -> None:
    clock = Clock()
    addresses = Addresses(NAMES, clock)
    first, second, third = order_of(addresses)
    addresses.leave(first, 2000)
    assert order_of(addresses) == [second, third]
    clock.now = 2
    assert set(order_of(addresses)) == set(NAMES)
    for name in NAMES:
        addresses.leave(name, 5000)
    with pytest.raises(Unavailable) as caught:
        next(addresses.turns(10))
    assert caught.value.retry_after_ms == 5000


def test_one_that_leaves_without_a_wish_comes_last_and_at_once() -> None:
    addresses = Addresses(NAMES, Clock())
    first, second, third = order_of(addresses)
    addresses.leave(first, 0)
    assert order_of(addresses) == [second, third, first]


def test_the_same_address_twice_is_tried_twice() -> None:
    addresses = Addresses(["a:1", "a:1"], Clock())
    assert order_of(addresses) == ["a:1", "a:1"]


def test_a_refusal_is_told_before_what_may_pass() -> None:
    lost, refused = ConnectionLost("refused"), Unauthenticated("who are you")
    busy = Busy("full")
    assert why_none([("a:1", lost), ("b:1", busy), ("c:1", refused)]) is refused
    assert why_none([("a:1", lost), ("b:1", busy)]) is busy
    told = why_none([("a:1", lost), ("b:1", ConnectionLost("away"))])
    assert isinstance(told, ConnectionLost) and str(told) == "a:1: refused; b:1: away"
    assert str(why_none([])) == "time ran out"
