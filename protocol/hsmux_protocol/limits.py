"""Every limit of the wire format, with its unit and its reason.

A limit named here is announced in WELCOME where a peer can act on it, and PROTOCOL.md lists it with
the text below it: what is counted, a colon, and why.
"""

from typing import Final

__all__ = [
    "BATCH_ITEMS_MAX",
    "CONTEXT_ENTRIES_MAX",
    "CONTEXT_SIZE_MAX",
    "DEPTH_MAX",
    "ELEMENTS_MAX",
    "FRAME_SIZE_MAX",
    "FRAME_SIZE_MAX_OPENING",
    "IDEMPOTENCY_TOKEN_SIZE",
    "ID_MAX",
    "ITEM_SIZE_MAX",
    "PIPELINE_MAX",
    "QUOTED_MAX",
    "RANDOM_SIZE_MAX",
    "REFERENCE_SIZE_MAX",
    "REQUESTS_IN_FLIGHT_MAX",
    "SECTION_OVERHEAD_SIZE",
]

FRAME_SIZE_MAX_OPENING: Final = 4 * 1024
"""Bytes of one frame body before WELCOME: nobody unknown may make the peer hold more."""

FRAME_SIZE_MAX: Final = 1024 * 1024
"""Bytes of one frame body after WELCOME: bounds the memory and the time one request can take."""

DEPTH_MAX: Final = 16
"""Nested arrays and maps in one frame: a decoder recurses once a level."""

ELEMENTS_MAX: Final = 4096
"""msgpack values in one frame: each becomes an object of 30 to 100 bytes when decoded."""

ID_MAX: Final = 2**64 - 1
"""Largest request id: what a u64 holds; 0 is the connection itself."""

ITEM_SIZE_MAX: Final = 64 * 1024
"""Bytes of one plaintext or message: larger data is split, so that others get their turn."""

BATCH_ITEMS_MAX: Final = 16384
"""Items of one batch: bounds the time one request keeps others waiting."""

CONTEXT_ENTRIES_MAX: Final = 16
"""Entries of one encryption context: it names what a ciphertext belongs to, it is no data."""

CONTEXT_SIZE_MAX: Final = 4 * 1024
"""Bytes of one encoded encryption context: it is authenticated again for every item."""

RANDOM_SIZE_MAX: Final = 4096
"""Bytes of one generate_random: tokens make them slowly."""

REFERENCE_SIZE_MAX: Final = 6 + 128 + 11
"""Bytes of a key reference: the longest is `alias/`, a name and `@4294967295`."""

QUOTED_MAX: Final = 64
"""Characters of a caller's text that an error repeats: an answer must stay small."""

IDEMPOTENCY_TOKEN_SIZE: Final = 16
"""Bytes of an idempotency token: random ones of this size do not collide."""

PIPELINE_MAX: Final = 1024
"""Requests a client may have unanswered on one connection: bounds what a peer must remember."""

REQUESTS_IN_FLIGHT_MAX: Final = 64
"""Requests of one connection that wait for something in the gateway: further ones wait for these,
so one connection cannot fill every queue.
"""

SECTION_OVERHEAD_SIZE: Final = 512
"""Bytes of an answer kept free: its frame and every value that is not an item of a batch."""
