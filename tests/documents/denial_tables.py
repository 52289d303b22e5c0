"""The tables of docs/denial-of-service.md: attacks by hand, limits and their values from the "
"code."""

import importlib
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, NamedTuple

import msgspec

from hsmux_gateway.config import Config

from .sections import Section, table

__all__ = ["BORDERS", "DENIAL_SECTIONS", "Attack", "module_of", "named", "value_of"]


class Attack(NamedTuple):
    """One row.

    Attributes:
        text: What somebody does.
        outcome: What comes of it.
        limits: Settings by their path in the configuration, and constants by their module (in
            `hsmux_gateway` unless it begins with `hsmux_protocol`) and name.
    """

    text: str
    outcome: str
    limits: tuple[str, ...]


_WIRE: Final = "hsmux_protocol.limits"
_TABLE: Final = "hsmux_protocol.operations"

BORDERS: Final[dict[str, tuple[Attack, ...]]] = {
    "connections": (
        Attack(
            "connections without end",
            "more than these are closed at once; the kernel keeps some until they are accepted",
            ("limits.connections_max", "listener.BACKLOG"),
        ),
        Attack(
            "connections that say nothing, half handshakes",
            "handshake and HELLO have this time together; whoever has not said who it is shares "
            "one in so many places with its like, and the slowest of them makes room for the next",
            ("limits.handshake_timeout_s", "listener.OPENING_SHARE"),
        ),
        Attack(
            "failed handshakes",
            "counted by source and reason, here in the log, and in the audit log (see there)",
            ("listener.REPORT_INTERVAL_S", "listener.REPORT_LINES_MAX"),
        ),
        Attack(
            "huge certificates, endless handshakes",
            "closed when more came; at most so much is read at once",
            ("tls.HANDSHAKE_SIZE_MAX", "tls.HANDSHAKE_RECEIVE_SIZE"),
        ),
        Attack(
            "records without content, changes of keys",
            "closed after so many; so many are looked at before others have their turn",
            ("tls.RECORDS_EMPTY_MAX", "tls.RECORDS_MAX"),
        ),
        Attack(
            "a peer that is gone without a word",
            "the kernel asks after a silence, and drops who acknowledges nothing",
            ("listener.KEEPALIVE_IDLE_S", "listener.USER_TIMEOUT_MS"),
        ),
        Attack(
            "a connection that is kept and not used",
            "closed",
            ("limits.idle_timeout_s",),
        ),
        Attack(
            "a peer that is told to go and stays",
            "not waited for longer, and no more of it is read",
            ("tls.CLOSE_TIMEOUT_S", "tls.LINGER_SIZE_MAX", "connection.GRACE_S"),
        ),
    ),
    "frames": (
        Attack(
            "a length that lies",
            "refused from its four bytes: before WELCOME, and after it; buffers grow as bytes come",
            (f"{_WIRE}.FRAME_SIZE_MAX_OPENING", f"{_WIRE}.FRAME_SIZE_MAX"),
        ),
        Attack(
            "msgpack that becomes large when it is decoded",
            "refused by a walk over its bytes before anything is made of them",
            (f"{_WIRE}.DEPTH_MAX", f"{_WIRE}.ELEMENTS_MAX"),
        ),
        Attack(
            "a frame that comes byte by byte",
            "dropped when it takes longer than this, and a second for so many bytes",
            ("limits.frame_timeout_s", "connection.FRAME_RATE_MIN"),
        ),
        Attack(
            "answers that are never read",
            "beyond so much nothing more is read from the peer; who takes no such piece in the "
            "time is dropped",
            ("connection.ANSWERS_SIZE_MAX", "answers.PIECE_SIZE", "limits.send_timeout_s"),
        ),
        Attack(
            "floods of frames, on however many connections",
            "an access point has so much of the event loop in a round, in slices",
            ("fairness.QUANTUM_NS", "fairness.SLICE_NS"),
        ),
    ),
    "requests": (
        Attack(
            "more requests than are worked on",
            "of one connection so many wait for something at a time; further ones are held up to "
            "this size, and then nothing more is read",
            (
                f"{_WIRE}.REQUESTS_IN_FLIGHT_MAX",
                f"{_WIRE}.PIPELINE_MAX",
                "connection.HELD_SIZE_MAX",
                "connection.HELD_OVERHEAD",
            ),
        ),
        Attack(
            "the same on many connections",
            "an access point that has as many in work as are left for the others gets `Busy`",
            ("limits.requests_max",),
        ),
        Attack(
            "an application that asks for more than it shall",
            "`Busy` with the time to wait, before anything is decided or recorded; after a pause "
            "this much of the rate at once",
            (
                "limits.access_point_requests_per_s",
                "limits.access_point_bytes_per_s",
                "limits.access_point_in_flight",
                "access.limits.BURST_S",
                "access.limits.IN_FLIGHT_RETRY_MS",
            ),
        ),
        Attack(
            "large batches, large items",
            "refused before any work; work on many items goes by turns",
            (
                f"{_WIRE}.BATCH_ITEMS_MAX",
                f"{_WIRE}.ITEM_SIZE_MAX",
                "keys.batch_service.INLINE_ITEMS_MAX",
            ),
        ),
        Attack(
            "large contexts, or another one for each item",
            "refused; of different ones in a batch policies look at so many",
            (
                f"{_WIRE}.CONTEXT_ENTRIES_MAX",
                f"{_WIRE}.CONTEXT_SIZE_MAX",
                "access.asked.CONTEXTS_MAX",
            ),
        ),
        Attack(
            "names, tokens and numbers of any length",
            "refused; an error repeats so much of what was sent",
            (
                f"{_WIRE}.REFERENCE_SIZE_MAX",
                f"{_WIRE}.IDEMPOTENCY_TOKEN_SIZE",
                f"{_WIRE}.RANDOM_SIZE_MAX",
                f"{_WIRE}.QUOTED_MAX",
                "requests.ERROR_TEXT_MAX",
            ),
        ),
        Attack(
            "private keys and certificates that are dear to use or to make",
            "so many threads sign, make keys and issue certificates, by turns of access points; "
            "who has as many places in their queue as are left for the others gets `Busy`",
            (
                "assembly.SIGNERS_MAX",
                "assembly.GENERATORS_MAX",
                "assembly.ISSUERS_MAX",
                "assembly.THREAD_QUEUE_MAX",
            ),
        ),
        Attack(
            "policies and network rules that are dear to decide on",
            "refused when they are put",
            (
                f"{_TABLE}.DOCUMENT_SIZE_MAX",
                f"{_TABLE}.POLICIES_MAX",
                f"{_TABLE}.NETWORKS_MAX",
                "access.policy.STATEMENTS_MAX",
                "access.policy.RESOURCES_MAX",
            ),
        ),
        Attack(
            "client keys without end",
            "an access point has so many at a time, and renews one not sooner than after this time",
            (f"{_TABLE}.CLIENT_KEYS_MAX", "access.renewal.RENEWAL_INTERVAL_MS"),
        ),
    ),
    "tokens": (
        Attack(
            "more work than a token can do",
            "of a token's queue an access point may have as much as is left for the others, then "
            "it gets `Busy`; workers take the next job from another access point in turn",
            ("hsm.<name>.queue_items_max", "hsm.<name>.workers"),
        ),
        Attack(
            "large jobs",
            "cut: a worker has so much of one at a time",
            (
                "hsm.pool.WORK_SIZE_MAX",
                "hsm.jobs.ITEMS_MAX",
                "hsm.jobs.MESSAGE_ITEMS_SIZE_MAX",
            ),
        ),
        Attack(
            "a request that hangs the module",
            "its worker is killed and replaced; making and signing have times of their own",
            ("hsm.pool.KILL_DEFAULT_S",),
        ),
        Attack(
            "a request that crashes the module, again and again",
            "after the second worker it is refused for a while: this access point, key and "
            "operation",
            ("hsm.pool_state.REFUSAL_S",),
        ),
        Attack(
            "a token that fails",
            "after so many failures in a row requests fail at once; starts come at this pace at "
            "most",
            (
                "hsm.pool_state.BREAKER_FAILURES",
                "hsm.pool_state.STARTS_MAX",
                "hsm.pool_state.BACKOFF_MAX_S",
            ),
        ),
        Attack(
            "encryptions until an IV repeats",
            "a warning, and then a refusal, of one version of a key",
            ("keys.counters.USES_ROTATE", "keys.counters.USES_MAX"),
        ),
    ),
    "store": (
        Attack(
            "changes without end",
            "who has as many places in the writer's queue as are left for the others gets `Busy`; "
            "a commit takes so many, by turns of access points",
            ("store.writer.QUEUE_LENGTH_MAX", "store.writer.GROUP_SIZE_MAX"),
        ),
        Attack(
            "idempotency tokens that have to be looked up",
            "one at a time, by turns; so many may wait",
            ("effects.READS_MAX",),
        ),
        Attack(
            "a database that hangs",
            "given up after this; what is in memory decides for so long",
            (
                "store.engines.CONNECT_TIMEOUT_S",
                "store.engines.STATEMENT_TIMEOUT_MS",
                "effects.PATIENCE_S",
                "store.stale_s",
            ),
        ),
    ),
    "audit": (
        Attack(
            "failed handshakes that fill the disk",
            "counted: one record for each of so many sources and reasons in this time, and one "
            "more for each reason: so many bytes at most",
            (
                "audit.floods.WINDOW_S",
                "audit.floods.SOURCES_MAX",
                "audit.floods.FLOOD_SIZE_MAX",
            ),
        ),
        Attack(
            "requests over a limit that fill the disk",
            "counted likewise, by access point and limit, in a table of their own",
            ("audit.floods.WINDOW_S", "audit.floods.SOURCES_MAX"),
        ),
        Attack(
            "requests that are recorded, without end",
            "each has a record; the limits of an access point bound how many, and segments that "
            "are old or beyond a size can go (0: never)",
            ("audit.segment_bytes", "audit.keep_days", "audit.keep_bytes"),
        ),
        Attack(
            "long texts in records",
            "cut",
            ("audit.records.TEXT_MAX", "audit.records.RECORD_SIZE_MAX"),
        ),
        Attack(
            "a full disk",
            "requests are refused until a write works, which is tried at this pace; the last "
            "records of a segment have room of their own, and floods of strangers get none",
            ("audit.journal.RETRY_S", "audit.segments.LAST_ROOM"),
        ),
        Attack(
            "log lines that nobody reads",
            "beyond so much they are dropped, and requests go on",
            ("log_sink.KEPT_SIZE_MAX",),
        ),
    ),
    "memory": (
        Attack(
            "large frames, large answers, half of either",
            "what a connection holds beyond its own is leased from one budget, of which an access "
            "point gets at most as much as is left for the others; without a lease nothing is read",
            (
                "buffers.OWN_SIZE",
                "buffers.READ_SIZE_MIN",
                "connection.SMALL_SIZE",
                "limits.large_buffer_bytes_max",
                "tls.RECEIVE_SIZE",
            ),
        ),
        Attack(
            "more keys than fit",
            "those that were not used longest are dropped and unsealed again when they are needed",
            (
                "native.arena_size_bytes",
                "keys.cached_private_keys_max",
                "keys.cached_private_key_idle_s",
            ),
        ),
        Attack(
            "requests about ever other keys",
            "so many decisions of an access point are remembered, and what was derived of so many "
            "keys",
            ("access.decision.REMEMBERED_MAX", "catalog.DERIVED_MAX"),
        ),
    ),
    "descriptors": (
        Attack(
            "connections until there is no descriptor left",
            "store, tokens and log have theirs, and fewer connections are taken where the process "
            "may not have as many as are configured",
            ("listener.DESCRIPTORS_RESERVED", "assembly.DESCRIPTORS_PER_WORKER"),
        ),
        Attack(
            "a host without descriptors",
            "the next connection is accepted after a pause",
            ("listener.ACCEPT_PAUSE_S",),
        ),
        Attack(
            "connections to the health server",
            "so many at a time, with so much to say in so long a time",
            (
                "health.CONNECTIONS_MAX",
                "health.REQUEST_SIZE_MAX",
                "health.REQUEST_TIMEOUT_S",
                "health.LINGER_SIZE_MAX",
                "health.ACCEPT_PAUSE_S",
            ),
        ),
    ),
}
"""Attacks by the border at which they end."""


def module_of(name: str) -> ModuleType:
    """The module of a constant."""
    path = name.rpartition(".")[0]
    return importlib.import_module(
        path if path.startswith("hsmux_protocol") else f"hsmux_gateway.{path}"
    )


def value_of(name: str) -> Any:
    """What a constant is, or the default of a setting.

    Raises:
        AttributeError: There is none of this name.
    """
    last = name.rpartition(".")[2]
    if last.isupper():
        return getattr(module_of(name), last)
    section: Any = Config
    for part in name.split(".")[:-1]:
        if part != "<name>":
            hint = typing.get_type_hints(section)[part]
            section = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else hint
    (field,) = (field for field in msgspec.structs.fields(section) if field.name == last)
    return field.default


def named() -> set[str]:
    """Every setting and constant that the document names."""
    return {name for attacks in BORDERS.values() for attack in attacks for name in attack.limits}


def _shown(name: str) -> str:
    """A value with its unit, which the end of its name tells."""
    value, words = value_of(name), name.rpartition(".")[2].lower().split("_")
    if words[-1] == "ns":
        return f"{value / 1e6:g} ms"
    if words[-1] in ("ms", "days"):
        return f"{value:,} {words[-1]}"
    if words[-1] == "s" and words[-2] != "per":
        return f"{value:g} s"
    if words[-1] == "share":
        return f"1 in {value}"
    if {"size", "bytes", "overhead", "room"} & set(words) or words[:2] == ["frame", "rate"]:
        return _bytes(value)
    return f"{value:,}"


def _bytes(value: int) -> str:
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value and value % size == 0:
            return f"{value // size:,} {unit}"
    return f"{value:,} B" if value else "0"


def _border(attacks: tuple[Attack, ...]) -> Callable[[], str]:
    rows = [
        (
            attack.text,
            attack.outcome,
            ", ".join(f"`{name}` {_shown(name)}" for name in attack.limits),
        )
        for attack in attacks
    ]
    return lambda: table(("attack", "what comes of it", "settings and constants, defaults"), rows)


DENIAL_SECTIONS: Final[dict[str, Section]] = {
    name: _border(attacks) for name, attacks in BORDERS.items()
}
