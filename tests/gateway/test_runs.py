"""Runs: requests that came together get the answers, errors and records they would get alone."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hsmux_gateway.audit.journal import Journal
from hsmux_gateway.audit.outbox import Outbox
from hsmux_gateway.call import Call, Outcome
from hsmux_gateway.engine import Engine, NotRecorded, collect_runs
from hsmux_gateway.metrics import Metrics
from hsmux_gateway.requests import Asked
from hsmux_gateway.runs import Run
from hsmux_protocol.errors import HsmuxError, InvalidCiphertext, NotFound, Unauthenticated
from hsmux_protocol.fields import write_fields
from hsmux_protocol.frames import Error, Frame, Ping, Pong, Request, Result
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.references import format_key_id
from tests.gateway.journals import RECORDS, kinds_in, open_journal, requests_in
from tests.gateway.parts import make_call
from tests.gateway.raw_client import RawClient
from tests.gateway.running import Running
from tests.gateway.test_engine import Everybody, Forgetful

Requests = Sequence[tuple[str, tuple[Any, ...]]]


def make_key(client: RawClient) -> str:
    arguments: tuple[Any, ...] = ("AES_256", "ENCRYPT_DECRYPT", "software", None, None, "", {})
    (key,) = client.call("create_key", *arguments)
    return format_key_id(key.key_id)


def burst(client: RawClient, requests: Requests, *, first_id: int = 10_000) -> list[Frame]:
    """The answers to requests that are sent in one go, in the order of the requests."""
    frames = []
    for number, (name, arguments) in enumerate(requests):
        operation = OPERATIONS[name]
        try:
            values = write_fields(operation.arguments, arguments)
        except ValueError:
            values = list(arguments)
        frames.append(Request(first_id + number, operation.number, 0, values, {}))
    client.tls.sendall(b"".join(client.protocol.send(frame) for frame in frames))
    answers: dict[int, Frame] = {}
    while len(answers) < len(requests):
        frame = client.receive()
        assert isinstance(frame, Result | Error)
        assert frame.id not in answers
        answers[frame.id] = frame
    return [answers[first_id + number] for number in range(len(requests))]


def kinds(answers: Sequence[Frame]) -> list[Any]:
    """What answers are, without what differs from one time to the next."""
    return [
        (answer.number, answer.text) if isinstance(answer, Error) else [type(v) for v in values]
        for answer in answers
        for values in [answer.values if isinstance(answer, Result) else []]
    ]


def mixed_requests(client: RawClient) -> list[tuple[str, tuple[Any, ...]]]:
    """Requests of which some join their neighbours and some are refused, for every reason."""
    one, other = make_key(client), make_key(client)
    sealed = [client.call("encrypt", one, {"a": "b"}, bytes([n]))[0] for n in range(4)]
    foreign = client.call("encrypt", other, {"a": "b"}, b"foreign")[0]
    tampered = sealed[0][:-1] + bytes([sealed[0][-1] ^ 1])
    opening: Requests = [
        *(("decrypt", (None, {"a": "b"}, envelope)) for envelope in sealed),
        ("decrypt", (None, {"a": "b"}, tampered)),
        ("decrypt", (None, {"a": "b"}, sealed[1])),
        ("decrypt", (None, {"a": "b"}, sealed[1][:40])),
        ("decrypt", (None, {"a": "b"}, b"no envelope")),
        ("decrypt", (None, {"a": "b"}, foreign)),
        ("decrypt", (one, {"a": "b"}, foreign)),
        ("decrypt", (one, {"a": "b"}, sealed[2])),
        ("decrypt", (one, {"a": "c"}, sealed[2])),
        ("decrypt", (one, {"a": "c"}, sealed[3])),
    ]
    sealing: Requests = [
        *(("encrypt", (one, {}, bytes(size))) for size in (0, 1, 64, 2000)),
        ("encrypt", (one, {"a": "b"}, b"another context")),
        ("encrypt", (other, {"a": "b"}, b"another key")),
        ("encrypt", ("key-" + "a" * 26, {}, b"no such key")),
        ("encrypt", ("key-" + "a" * 26, {}, b"no such key either")),
        ("encrypt", (one, {}, "no bytes")),
        ("encrypt", (f"{one}@2", {}, b"no such version")),
        ("encrypt", (f"{one}@2", {}, b"no such version either")),
        ("encrypt", (one, {}, b"fine")),
        ("list_keys", (b"", 1)),
        ("encrypt", (one, {}, b"fine")),
    ]
    return [*opening, *sealing, *opening, ("decrypt", (None, {}, b""))]


def test_a_burst_is_answered_like_the_same_requests_one_by_one(client: RawClient) -> None:
    requests = mixed_requests(client)
    alone = [burst(client, [request])[0] for request in requests]
    together = burst(client, requests)
    assert kinds(together) == kinds(alone)
    for before, after in zip(alone, together, strict=True):
        if isinstance(before, Result) and len(before.values[0]) < 10:
            assert isinstance(after, Result)
            assert after.values == before.values, "plaintexts are the same"


def test_a_run_encrypts_each_plaintext_once(client: RawClient, gateway: Running) -> None:
    key, plaintexts = make_key(client), [os.urandom(64) for _ in range(300)]
    answers = burst(client, [("encrypt", (key, {"a": "b"}, p)) for p in plaintexts])
    envelopes = [answer.values[0] for answer in answers if isinstance(answer, Result)]
    assert len(set(envelopes)) == 300
    assert len({envelope[24:48] for envelope in envelopes}) == 300, "nonces"
    opened = burst(client, [("decrypt", (None, {"a": "b"}, e)) for e in envelopes])
    assert [a.values[0] for a in opened if isinstance(a, Result)] == plaintexts
    records = requests_in(gateway.directory / "audit")[-600:]
    assert [(r["operation"], r["outcome"]) for r in records] == [
        *[("encrypt", "done")] * 300,
        *[("decrypt", "done")] * 300,
    ]
    assert len({record["reference"] for record in records}) == 600


def test_what_is_behind_a_run_waits_for_it(client: RawClient) -> None:
    operation, key = OPERATIONS["encrypt"], make_key(client)
    requests = [Request(n, operation.number, 0, [key, {}, b"x"], {}) for n in range(900, 905)]
    sent = b"".join(client.protocol.send(frame) for frame in requests)
    client.tls.sendall(sent + client.protocol.send(Ping(7)))
    came = [client.receive() for _ in range(6)]
    assert [frame.id for frame in came if isinstance(frame, Result)] == [*range(900, 905)]
    assert came[-1] == Pong(7)


def test_a_run_is_answered_before_a_broken_frame_ends_the_connection(client: RawClient) -> None:
    operation, key = OPERATIONS["encrypt"], make_key(client)
    requests = [Request(n, operation.number, 0, [key, {}, b"x"], {}) for n in range(900, 905)]
    good = b"".join(client.protocol.send(frame) for frame in requests)
    client.tls.sendall(good + b"\0\0\0\x01\xc1")
    came = [client.receive() for _ in range(6)]
    assert [frame.id for frame in came[:5] if isinstance(frame, Result)] == [*range(900, 905)]
    assert isinstance(came[5], Error)
    assert came[5].id == 0


# Without a gateway

USED = (b"K" * 16, 1)
"""Key and version of every answer."""


class Doubling:
    """Runs that give the last argument twice; a negative one is not found, a 13 is a defect."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    async def decrypt_run(self, calls: Sequence[Call]) -> list[Outcome] | None:
        """All of them."""
        self.runs.append(len(calls))
        numbers = [call.arguments[-1] for call in calls]
        if 0 in numbers:
            return None
        if 13 in numbers:
            raise ZeroDivisionError
        return [[2 * n, *USED] if n > 0 else InvalidCiphertext("it does not open") for n in numbers]

    async def decrypt(self, call: Call, key: None, context: bytes, number: int) -> list[Any]:
        """One of them."""
        if number < 0:
            raise InvalidCiphertext("it does not open")
        if number == 13:
            raise NotFound("thirteen")
        return [2 * number, *USED]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Records in a file."""
    journal = open_journal(tmp_path)
    yield journal
    journal.close()


def make_engine(journal: Journal, service: Doubling, identities: Everybody) -> Engine:
    return Engine(
        {"decrypt": service.decrypt},
        identities=identities,
        memory=Forgetful(),
        journal=journal,
        records=RECORDS,
        outbox=Outbox(journal, RECORDS),
        metrics=Metrics(),
        requests_max=10,
        runs=collect_runs(service),
    )


def shown(outcomes: Sequence[Outcome]) -> list[Any]:
    """Values, or the names of errors."""
    return [type(o).__name__ if isinstance(o, HsmuxError) else o[0] for o in outcomes]


@pytest.mark.parametrize(
    ("numbers", "outcomes"),
    [
        ([1, 2, 3], [2, 4, 6]),
        ([1, -2, 3], [2, "InvalidCiphertext", 6]),
        ([1, 0, -3], [2, 0, "InvalidCiphertext"]),
        ([1, 13, -3], [2, "NotFound", "InvalidCiphertext"]),
    ],
)
async def test_each_call_of_a_run_has_its_own_outcome_and_record(
    journal: Journal, tmp_path: Path, numbers: list[int], outcomes: list[Any]
) -> None:
    service = Doubling()
    engine = make_engine(journal, service, Everybody())
    calls = [make_call("decrypt", None, b"", number) for number in numbers]
    found = await engine.call_run(calls)
    assert shown(found) == outcomes
    assert {o.reference for o in found if isinstance(o, HsmuxError)} <= {"r-test-1"}
    assert service.runs == [3]
    journal.flush()
    assert [record["outcome"] for record in requests_in(tmp_path)] == [
        o if isinstance(o, str) else "done" for o in outcomes
    ]


@pytest.mark.parametrize(
    ("numbers", "kinds"),
    [((7, 8, 9), ["run"]), ((7, 9, 10), ["request"] * 3)],
    ids=["without a gap", "with a gap"],
)
async def test_a_run_is_one_record_if_its_references_follow_each_other(
    journal: Journal, tmp_path: Path, numbers: tuple[int, ...], kinds: list[str]
) -> None:
    engine = make_engine(journal, Doubling(), Everybody())
    calls = [
        make_call("decrypt", None, b"ctx", n)._replace(reference=f"r000000000000-{n:x}", size=n)
        for n in numbers
    ]
    await engine.call_run(calls)
    journal.flush()
    assert kinds_in(tmp_path) == ["start", *kinds]
    records = requests_in(tmp_path)
    assert [record["reference"] for record in records] == [call.reference for call in calls]
    assert {record["statement"] for record in records} == {"allowed by everything statement 1"}
    assert sum(r["bytes_in"] for r in records[-3 if kinds[1:] else -1 :]) == sum(numbers)


async def test_a_run_of_somebody_who_was_revoked_does_nothing(journal: Journal) -> None:
    service, identities = Doubling(), Everybody()
    identities.enabled = False
    engine = make_engine(journal, service, identities)
    outcomes = await engine.call_run([make_call("decrypt", None, b"", n) for n in (1, 2)])
    assert [type(outcome) for outcome in outcomes] == [Unauthenticated] * 2
    assert service.runs == []


async def test_a_late_call_is_late_alone(journal: Journal) -> None:
    service = Doubling()
    engine = make_engine(journal, service, Everybody())
    late = make_call("decrypt", None, b"", 2)._replace(deadline=time.monotonic())
    calls = [make_call("decrypt", None, b"", 1), late, make_call("decrypt", None, b"", 3)]
    assert shown(await engine.call_run(calls)) == [2, "DeadlineExceeded", 6]
    assert service.runs == []


async def test_nothing_is_done_together_while_nothing_can_be_recorded(journal: Journal) -> None:
    service = Doubling()
    engine = make_engine(journal, service, Everybody())
    journal.failing, journal._retry_at = True, time.monotonic() + 60
    outcomes = await engine.call_run([make_call("decrypt", None, b"", n) for n in (1, 2)])
    assert [type(outcome) for outcome in outcomes] == [NotRecorded] * 2
    assert service.runs == []
    journal.failing = False


async def test_what_joins(journal: Journal) -> None:
    engine = make_engine(journal, Doubling(), Everybody())
    call = make_call("decrypt", None, b"a", 1)
    assert engine.joins(call, make_call("decrypt", None, b"a", 2))
    assert not engine.joins(call, make_call("decrypt", None, b"b", 2))
    assert not engine.joins(call, make_call("decrypt", "key", b"a", 2))
    assert not engine.joins(call, make_call("encrypt", None, b"a", 2))
    assert not engine.joins(make_call("encrypt", 1, 2, 3), make_call("encrypt", 1, 2, 4))


async def test_a_run_takes_what_joins_and_nothing_that_is_refused(journal: Journal) -> None:
    run = Run(make_engine(journal, Doubling(), Everybody()).joins)
    one = Asked(make_call("decrypt", None, b"a", 1), None, 100)
    refused = one._replace(refusal=NotFound("no"))
    assert run.add(1, one)
    assert run.add(2, one)
    assert not run.add(3, refused)
    assert not run.add(3, one._replace(call=make_call("decrypt", None, b"b", 1)))
    assert (run.size, repr(run)) == (200, "Run(2 requests, 200 bytes)")
    assert run.take_all() == [(1, one), (2, one)]
    assert run.size == 0
    assert run.add(3, refused)
    assert not run.add(4, one)
    assert not run.add(4, refused)
    assert run.take_all() == [(3, refused)]
    assert run.add(4, one)
    assert run.add(5, one)
