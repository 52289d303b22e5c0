"""What a hostile or broken peer meets: TLS, frames, time, floods; and that nobody else pays."""

import json
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest

from hsmux_protocol import errors
from hsmux_protocol.connection import VERSION, ClientConnection
from hsmux_protocol.frames import Error, Goaway, Hello, Ping, Pong, Request, Result
from hsmux_protocol.limits import FRAME_SIZE_MAX, FRAME_SIZE_MAX_OPENING
from tests.gateway.journals import records_in
from tests.gateway.raw_client import RawClient, client_context, connect
from tests.gateway.running import Running

TIMEOUT_S = 15.0


def _frame(value: object) -> bytes:
    body: bytes = msgpack.packb(value)
    return struct.pack(">I", len(body)) + body


def _read_to_end(tls: ssl.SSLSocket) -> bytes:
    received = b""
    while piece := tls.recv(65536):
        received += piece
    return received


MALFORMED = {
    "length over the cap": struct.pack(">I", FRAME_SIZE_MAX + 1),
    "length of all ones": b"\xff\xff\xff\xff",
    "empty frame": b"\0\0\0\0",
    "not msgpack": b"\0\0\0\x01\xc1",
    "not an array": _frame({"a": 1}),
    "unknown kind": _frame([99]),
    "trailing bytes": b"\0\0\0\x04" + msgpack.packb([7, 0]) + b"\0",
    "float": _frame([7, 1.5]),
    "extension type": _frame([7, msgpack.ExtType(1, b"")]),
    "duplicate keys": b"\0\0\0\x0c\x96\x03\x01\x01\x00\x90\x82\xa1a\x01\xa1a\x01",
    "nested too deep": _frame([3, 1, 1, 0, [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]], {}]),
    "too many values": _frame([3, 1, 1, 0, [0] * 5000, {}]),
    "second HELLO": _frame([1, [1], [], ""]),
    "a gateway's frame": _frame([4, 1, []]),
    "id 0": _frame([3, 0, 1, 0, [], {}]),
    "text for an id": _frame([3, "1", 1, 0, [], {}]),
    "not UTF-8": b"\0\0\0\x0b\x96\x03\x01\x01\x00\x91\xa3\xff\xff\xff\x80",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_frame_ends_its_connection_with_a_reason(
    gateway: Running, context: ssl.SSLContext, client: RawClient, name: str
) -> None:
    with connect(gateway.address, context) as hostile:
        hostile.tls.sendall(MALFORMED[name])
        frame = hostile.receive()
        assert isinstance(frame, Error)
        assert (frame.id, frame.number) == (0, errors.ProtocolError.number)
        assert _read_to_end(hostile.tls) == b""
    assert client.call("generate_random", 8)


def test_a_frame_before_hello_is_refused_at_4_kib(
    gateway: Running, context: ssl.SSLContext
) -> None:
    host, port = gateway.address.rsplit(":", 1)
    for first in (_frame([3, 1, 1, 0, [], {}]), struct.pack(">I", FRAME_SIZE_MAX_OPENING + 1)):
        with (
            socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            tls.sendall(first)
            raw = RawClient(tls)
            frame = raw.receive()
            assert isinstance(frame, Error) and frame.number == errors.ProtocolError.number


def test_another_version_is_refused(gateway: Running, context: ssl.SSLContext) -> None:
    host, port = gateway.address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        raw = RawClient(tls)
        tls.sendall(raw.protocol.send(Hello([VERSION + 1], [], "")))
        frame = raw.receive()
        assert isinstance(frame, Error) and "version" in frame.text


ARGUMENTS: dict[str, tuple[int, list[Any], dict[str, Any], type[errors.HsmuxError]]] = {
    "unknown operation": (60000, [], {}, errors.ProtocolError),
    "too few arguments": (1, ["alias/a"], {}, errors.InvalidArgument),
    "wrong type": (1, [5, {}, b""], {}, errors.InvalidArgument),
    "text for binary": (1, ["alias/a", {}, "text"], {}, errors.InvalidArgument),
    "boolean for a number": (7, [True], {}, errors.InvalidArgument),
    "number out of range": (7, [4097], {}, errors.InvalidArgument),
    "plaintext over the limit": (1, ["alias/a", {}, bytes(65537)], {}, errors.InvalidArgument),
    "context key twice ordered wrongly": (
        1,
        ["alias/a", {"b": "", "a": ""}, b""],
        {},
        errors.InvalidArgument,
    ),
    "reserved context": (1, ["alias/a", {"hsmux:x": ""}, b""], {}, errors.InvalidArgument),
    "unknown option": (33, [b"", 1], {"nothing": 1}, errors.InvalidArgument),
    "token where nothing changes": (
        33,
        [b"", 1],
        {"idempotency_token": bytes(16)},
        errors.InvalidArgument,
    ),
    "a huge wrong reference": (1, ["x" * 60000, {}, b""], {}, errors.InvalidArgument),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_bad_argument_costs_one_typed_answer(client: RawClient, name: str) -> None:
    operation, arguments, options, expected = ARGUMENTS[name]
    client.tls.sendall(client.protocol.send(Request(77, operation, 0, arguments, options)))
    frame = client.receive()
    assert isinstance(frame, Error)
    assert (frame.id, frame.number) == (77, expected.number)
    assert frame.reference
    assert client.call("generate_random", 8)


def _client_key(client: RawClient, directory: Path, name: str) -> tuple[ssl.SSLContext, bytes]:
    client.call("create_access_point", name, "", ["administrator"], [], None)
    record, certificate, ca, private_key = client.call("create_client_key", name, None, 30)
    (directory / "administrator.pem").write_text(ssl.DER_cert_to_PEM_cert(certificate))
    (directory / "administrator.key").write_bytes(private_key)
    (directory / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(ca))
    return client_context(directory), record.client_key_id


def test_a_revoked_client_key_is_refused_on_open_and_new_connections(
    gateway: Running, client: RawClient, tmp_path: Path
) -> None:
    context, client_key_id = _client_key(client, tmp_path, "revoked")
    with connect(gateway.address, context) as victim:
        assert victim.call("generate_random", 8)
        assert client.call("revoke_client_key", client_key_id)[0].state == "Revoked"
        frame = victim.receive()
        assert isinstance(frame, Error)
        assert (frame.id, frame.number) == (0, errors.Unauthenticated.number)
        assert _read_to_end(victim.tls) == b""
    host, port = gateway.address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        frame = RawClient(tls).hello()
        assert isinstance(frame, Error) and frame.number == errors.Unauthenticated.number


def test_a_client_key_does_not_revoke_itself(client: RawClient) -> None:
    records = client.call("list_client_keys", b"", 100)[0]
    own = next(r for r in records if r.access_point == "administrator")
    with pytest.raises(errors.Conflict, match="itself"):
        client.call("revoke_client_key", own.client_key_id)


def test_a_slow_frame_is_cut_off_and_others_are_served(
    gateway: Running, context: ssl.SSLContext, client: RawClient
) -> None:
    with connect(gateway.address, context) as slow:
        slow.tls.sendall(struct.pack(">I", 100) + b"x")
        assert client.call("generate_random", 8)
        assert _read_to_end(slow.tls) == b""


def test_a_handshake_that_never_ends_is_cut_off(gateway: Running, client: RawClient) -> None:
    host, port = gateway.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as silent:
        assert client.call("generate_random", 8)
        assert silent.recv(1) == b""


def test_a_large_frame_passes_and_one_byte_more_does_not(client: RawClient) -> None:
    client.call("create_key", "AES_256", "ENCRYPT_DECRYPT", "software", None, "alias/large", "", {})
    overhead = len(_frame([3, 1, 3, 0, ["alias/large", {}, None, b"x" * 65536], {}])) - 65536
    column = b"\0\0\0\0" + b"\0" * (FRAME_SIZE_MAX - overhead)
    client.tls.sendall(
        client.protocol.send(Request(5, 3, 0, ["alias/large", {}, None, column], {}))
    )
    frame = client.receive()
    assert isinstance(frame, Error) and frame.number == errors.InvalidArgument.number


def test_pipelined_requests_are_all_answered(client: RawClient) -> None:
    client.call("create_key", "AES_256", "ENCRYPT_DECRYPT", "software", None, "alias/pipe", "", {})
    client.call("create_key", "EC_P256", "SIGN_VERIFY", "software", None, "alias/slow", "", {})
    wanted = set()
    for number in range(300):
        wanted.add(client.request("encrypt", "alias/pipe", {}, b"%d" % number))
        if number % 3 == 0:
            wanted.add(client.request("sign", "alias/slow", "ECDSA_SHA_256", False, b"m"))
    answered = [client.receive() for _ in wanted]
    assert {frame.id for frame in answered if isinstance(frame, Result)} == wanted


def test_ping_is_answered(client: RawClient) -> None:
    client.tls.sendall(client.protocol.send(Ping(2**64 - 1)))
    assert client.receive() == Pong(2**64 - 1)


def test_a_reader_that_never_reads_costs_the_others_nothing(
    gateway: Running, context: ssl.SSLContext, client: RawClient
) -> None:
    client.call("create_key", "AES_256", "ENCRYPT_DECRYPT", "software", None, "alias/deaf", "", {})
    before = _rss_bytes(gateway.process.pid)
    with connect(gateway.address, context) as deaf:
        deaf.tls.settimeout(1.0)
        sent = 0
        try:
            while sent < 1000:
                deaf.request("encrypt", "alias/deaf", {}, bytes(60000))
                sent += 1
        except TimeoutError:
            pass
        assert 0 < sent < 1000, "the gateway never stopped reading"
        assert client.call("generate_random", 8)
        assert _rss_bytes(gateway.process.pid) - before < 32 << 20


def _rss_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def test_the_gateway_says_goaway_and_answers_what_is_open(own_config: Path) -> None:
    from tests.gateway.running import running_gateway

    with running_gateway(own_config) as running:
        with connect(running.address, client_context(running.administrator)) as raw:
            open_id = raw.request(
                "create_key", "RSA_4096", "SIGN_VERIFY", "software", None, "alias/rsa", "", {}
            )
            raw.tls.sendall(raw.protocol.send(Ping(1)))
            assert raw.receive() == Pong(1)
            running.process.terminate()
            frames = [raw.receive() for _ in range(3)]
            assert [type(f) for f in frames] == [Goaway, Ping, Result]
            assert isinstance(frames[2], Result) and frames[2].id == open_id
            assert _read_to_end(raw.tls) == b""
        assert running.process.wait(TIMEOUT_S) == 0


def test_one_log_line_a_request_and_no_secret_in_it(gateway: Running, client: RawClient) -> None:
    canary = "canary-5f2c7d"
    client.call("create_key", "AES_256", "ENCRYPT_DECRYPT", "software", None, "alias/log", "", {})
    envelope = client.call("encrypt", "alias/log", {"who": canary}, canary.encode())[0]
    client.call("decrypt", None, {"who": canary}, envelope)
    log = gateway.log_with('"decrypt"')
    records = records_in(gateway.directory / "audit")
    for text in (log, json.dumps(records)):
        assert canary not in text
    lines = [json.loads(line) for line in log.splitlines()]
    for found in (records, lines):
        asked = [record for record in found if record.get("operation") == "decrypt"]
        assert [record["outcome"] for record in asked][-1] == "done"
        assert len(asked[-1]["context"]) == 32 and asked[-1]["key_version"] == 1


def test_the_protocol_object_forgets_answered_ids() -> None:
    assert ClientConnection().open_ids == set()
