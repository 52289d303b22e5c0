"""A refusal is explained by its reference, to those who may know; the caller learns nothing new."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from hsmux_gateway.access.permits import WHY
from hsmux_gateway.audit.commands import EXIT_NOT_FOUND, explained
from hsmux_gateway.audit.explain_service import ExplainService
from hsmux_gateway.audit.layout import chain_directories, segment_paths
from hsmux_gateway.audit.lookup import decided_by, find_in_segment, newest_segments
from hsmux_gateway.audit.records import Run, write_record
from hsmux_gateway.audit.segments import SEGMENT_SIZE_MIN, open_chain
from hsmux_gateway.errors import OperatorError
from hsmux_gateway.fairness import FairBudget, FairThreads
from hsmux_protocol import errors
from hsmux_protocol.columns import pack_column
from hsmux_protocol.operations import OPERATIONS
from hsmux_protocol.references import format_key_id
from tests.gateway.access.test_enforcement import (
    allow,
    connected,
    make_key,
    make_point,
    new_name,
    put,
)
from tests.gateway.journals import records_in
from tests.gateway.outside import Signer, make_root, pem_of
from tests.gateway.raw_client import RawClient, connect
from tests.gateway.running import Running, running_gateway, write_config

from .logs import AT_MS, DEPLOYMENT, make_log, request

NAMES = [field.name for field in OPERATIONS["explain_reference"].results]


URI = "spiffe://example.org/explained"


@pytest.fixture(scope="module")
def root() -> Signer:
    """An outside CA."""
    return make_root()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, root: Signer) -> Iterator[Running]:
    """A gateway whose first administrator may do everything."""
    directory = tmp_path_factory.mktemp("explain")
    (directory / "outside.pem").write_bytes(pem_of(root.certificate))
    config = write_config(directory, f'[tls.outside_cas]\nother = "{directory}/outside.pem"\n')
    with running_gateway(config) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def _refused(client: RawClient, *asked: Any) -> errors.HsmuxError:
    with pytest.raises(errors.HsmuxError) as caught:
        client.call(*asked)
    return caught.value


def _explained(admin: RawClient, reference: str) -> dict[str, Any]:
    return dict(zip(NAMES, admin.call("explain_reference", reference), strict=True))


def test_a_refusal_is_explained(running: Running, admin: RawClient, tmp_path: Path) -> None:
    alias = f"alias/{new_name('orders')}"
    make_key(admin, alias)
    limited = allow("crypto-user", alias, size_max=4)
    policy = put(admin, limited, allow("auditor"))
    point = make_point(admin, policy)
    with connected(running, admin, point, tmp_path) as client:
        refused = _refused(client, "encrypt", alias, {}, b"too much")
        assert (type(refused), refused.text) == (
            errors.Denied,
            f"access point {point.name} may not encrypt {alias}; {WHY}",
        )
        told = _explained(admin, refused.reference)
        assert told["at_ms"] > 0
        assert (told["access_point"], told["operation"]) == (point.name, "encrypt")
        assert (told["resource"], told["outcome"]) == (alias, "Denied")
        assert (told["statement"], told["since"]) == ("no statement allows it", "none")
        assert told["statement_now"] == "no statement allows it"
        assert told["missing"] == [f"{policy} statement 1: wants data of at most 4 bytes"]

        # Denied by a statement, then the policy is put again, then it is gone.
        deny = {"effect": "deny", "operations": ["encrypt"], "resources": [alias]}
        put(admin, limited, deny, name=policy)
        reference = _refused(client, "encrypt", alias, {}, b"x").reference
        told = _explained(admin, reference)
        assert told["statement"] == told["statement_now"] == f"denied by {policy} statement 2"
        assert (told["policy"], told["since"]) == (policy, "same")
        assert json.loads(told["text"]) == deny
        put(admin, limited, {**deny, "operations": ["decrypt"]}, name=policy)
        told = _explained(admin, reference)
        assert told["since"] == "changed" and json.loads(told["text"])["operations"] == ["decrypt"]
        put(admin, allow("crypto-user", alias), name=policy)
        told = _explained(admin, reference)
        assert (told["since"], told["text"]) == ("gone", "")
        assert told["statement_now"] == f"allowed by {policy} statement 1" and not told["missing"]

        # Who is not accepted any more is told so.
        admin.call("update_access_point", point.name, None, "Disabled", *([[]] * 6), None)
        told = _explained(admin, reference)
        assert told["statement_now"] == "the access point is not enabled"

    # And without the gateway, what the log alone knows.
    copy = Path(shutil.copytree(running.directory / "audit", tmp_path / "copy"))
    alone = explained(copy, reference)
    assert (alone["policy"], alone["outcome"]) == (policy, "Denied")
    assert (alone["access_point"], alone["resource"]) == (point.name, alias)
    assert alone["statement"] == f"denied by {policy} statement 2" and alone["sequence"] > 1


def test_what_was_done_is_explained_too(running: Running, admin: RawClient) -> None:
    alias = f"alias/{new_name('done')}"
    make_key(admin, alias)
    admin.call("encrypt", alias, {}, b"x")
    admin.call("show_key", alias)
    references = [
        record["reference"]
        for record in records_in(running.directory / "audit")
        if record.get("kind") == "request" and record.get("resource") == alias
    ]
    for reference, operation in zip(references, ("create_key", "encrypt", "show_key"), strict=True):
        told = _explained(admin, reference)
        assert (told["operation"], told["outcome"]) == (operation, "done")
        assert told["statement"].startswith("allowed by administrator statement")
        assert told["policy"] == "administrator" and told["since"] == "same"


@pytest.mark.parametrize("reference", ["r", "r1", "r5f3a91c07b2e", "../../etc", "R5F3A91C07B2E-1"])
def test_what_is_no_reference_is_refused(admin: RawClient, reference: str) -> None:
    assert isinstance(_refused(admin, "explain_reference", reference), errors.InvalidArgument)


def test_an_unknown_reference_is_not_found(admin: RawClient, running: Running) -> None:
    assert isinstance(_refused(admin, "explain_reference", "r000000000000-1"), errors.NotFound)
    with pytest.raises(OperatorError) as told:
        explained(running.directory / "audit", "r000000000000-1")
    assert told.value.exit_code == EXIT_NOT_FOUND
    with pytest.raises(OperatorError, match="no reference"):
        explained(running.directory / "audit", "r1")


def test_an_explanation_is_for_auditors(running: Running, admin: RawClient, tmp_path: Path) -> None:
    point = make_point(admin, put(admin, allow("crypto-user"), allow("key-admin")))
    with connected(running, admin, point, tmp_path) as client:
        reference = _refused(client, "list_policies", b"", 10).reference
        assert isinstance(_refused(client, "explain_reference", reference), errors.Denied)
    for role in ("auditor", "access-admin"):
        (place := tmp_path / role).mkdir()
        auditor = make_point(admin, put(admin, allow(role)))
        with connected(running, admin, auditor, place) as client:
            assert _explained(client, reference)["operation"] == "list_policies"


def test_a_refusal_tells_what_the_caller_sent_and_never_whether_a_key_is_there(
    running: Running, admin: RawClient, tmp_path: Path
) -> None:
    there = f"alias/{new_name('there')}"
    key_id = make_key(admin, there)
    point = make_point(admin, put(admin, allow("crypto-user", "alias/granted/*")))
    pairs = [
        (there, there + "-not"),
        (key_id, format_key_id(bytes(16))),
        (f"{there}@1", "alias/no@1"),
    ]
    with connected(running, admin, point, tmp_path) as client:
        asked: dict[str, tuple[Any, ...]] = {
            "encrypt": ({}, b"x"),
            "encrypt_batch": ({}, None, pack_column([b"x"])),
            "sign": ("ECDSA_SHA_256", False, b"x"),
            "get_public_key": (),
            "show_key": (),
        }
        for operation, rest in asked.items():
            for pair in pairs:
                for name in pair:
                    refused = _refused(client, operation, name, *rest)
                    assert (type(refused), refused.text) == (
                        errors.Denied,
                        f"access point {point.name} may not {operation} {name}; {WHY}",
                    )
                    assert refused.reference


# Looking it up


def test_a_reference_inside_a_run_is_found(tmp_path: Path) -> None:
    writer = open_chain(tmp_path, DEPLOYMENT, segment_size=SEGMENT_SIZE_MIN)
    who = ("billing", b"a" * 16, b"k" * 16, "192.0.2.7")
    run = Run(
        *(AT_MS, "r5f3a91c07b2e-f0", "r5f3a91c07b2e-10f", 32, *who, 1),
        *("allowed by p statement 1", "alias/a", b"K" * 16, 1, b"", 640, 1800, 9),
    )
    writer.append([write_record(request(1)), write_record(run), write_record(request(0x110))])
    writer.close()
    (path,) = newest_segments(tmp_path)
    for reference, sequence in (("f0", 2), ("ff", 2), ("10f", 2), ("110", 3), ("1", 1)):
        found = find_in_segment(path, f"r5f3a91c07b2e-{reference}")
        assert found is not None and found.sequence == sequence
    assert find_in_segment(path, "r5f3a91c07b2e-111") is None
    assert find_in_segment(path, "r5f3a91c07b2f-1") is None
    told = explained(tmp_path, "r5f3a91c07b2e-ff")
    assert (told["outcome"], told["policy"], told["operation"]) == ("done", "p", "encrypt")


def test_the_newest_segments_come_first_and_only_so_many(tmp_path: Path) -> None:
    make_log(tmp_path, 1000)
    (directory,) = chain_directories(tmp_path)
    paths = list(segment_paths(directory).values())
    assert len(paths) > 3
    assert list(newest_segments(tmp_path)) == paths[::-1]
    assert list(newest_segments(tmp_path, 2 * SEGMENT_SIZE_MIN)) == paths[:-3:-1]
    assert list(newest_segments(tmp_path, 1)) == paths[-1:]
    # One that is removed while somebody looks has nothing.
    paths[0].unlink()
    assert find_in_segment(paths[0], request(0).reference) is None


def test_a_refusal_of_a_certificate_of_an_outside_ca_is_explained(
    running: Running, admin: RawClient, root: Signer, tmp_path: Path
) -> None:
    name = new_name("outside")
    admin.call("create_access_point", name, "", [], [f"uri:{URI}"], None)
    context = root.issue(uris=[URI]).context(running.administrator / "ca.pem", tmp_path)
    with connect(running.address, context) as client:
        reference = _refused(client, "generate_random", 8).reference
    assert _explained(admin, reference)["statement_now"] == "no statement allows it"
    admin.call("update_access_point", name, None, None, *([[]] * 5), [f"uri:{URI}"], None)
    assert _explained(admin, reference)["statement_now"] == "the client key is not enabled"


def test_what_is_no_segment_keeps_nobody_from_an_explanation(
    running: Running, admin: RawClient
) -> None:
    reference = _refused(admin, "encrypt", "alias/nothing", {}, b"x").reference
    strange = running.directory / "audit" / ("0" * 32)
    strange.mkdir()
    # As when a segment is removed between the look at the names and the look at it.
    (strange / "00000001.log").symlink_to("gone")
    (strange / "00000002.log").mkdir()
    os.mkfifo(strange / "00000003.log")
    (strange / "00000004.log").write_bytes(b"short")
    try:
        assert _explained(admin, reference)["outcome"] == "NotFound"
    finally:
        shutil.rmtree(strange)


async def test_looking_takes_no_thread_that_others_need(tmp_path: Path) -> None:
    make_log(tmp_path)
    looking = FairThreads(1, FairBudget(100))
    service = ExplainService(cast(Any, None), cast(Any, None), tmp_path, looking)
    call = cast(Any, SimpleNamespace(principal=SimpleNamespace(access_point_id=bytes(16))))
    others = trio.to_thread.current_default_thread_limiter()
    lacking: list[str] = []

    async def ask() -> None:
        with pytest.raises(errors.NotFound) as caught:
            await service.explain_reference(call, "r0123456789ab-1")
        lacking.append(caught.value.text)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert not others.borrowed_tokens
    assert len(lacking) == 8


@pytest.mark.parametrize(
    ("statement", "policy", "label"),
    [
        ("allowed by p statement 2", "p", "p statement 2"),
        ("denied by p statement no; weekends", "p", "p statement no; weekends"),
        (
            "allowed by p statement 1; put_policy: denied by q statement last",
            "q",
            "q statement last",
        ),
    ],
)
def test_a_statement_is_found_in_what_decided(statement: str, policy: str, label: str) -> None:
    record = request(1)
    changed = msgspec.structs.replace(record, statement=statement)
    assert decided_by(changed) == (policy, label)


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "no statement allows it",
        "the access point is not enabled",
        "allowed by p statement 1; put_policy: no statement allows it",
    ],
)
def test_where_no_statement_decided_none_is_found(statement: str) -> None:
    assert decided_by(msgspec.structs.replace(request(1), statement=statement)) is None
